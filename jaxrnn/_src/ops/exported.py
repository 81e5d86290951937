"""Programs that are exported with the C++ kernel in them, and what they need where they run."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export

from jaxrnn._src.core import dispatch
from jaxrnn._src.ops import native


def export_with_kernels(
    function: Callable[..., Any], *, platforms: Sequence[str] | None = None
) -> Callable[..., jax.export.Exported]:
    """As ``jax.export.export``, but what runs on a CPU keeps the C++ kernel.

    A program of ``jax.export.export`` runs where jaxrnn is not installed, and so on XLA's loop.
    One of this function is as fast as ``unroll``, and runs on a CPU only after
    ``load_kernels()``, of the same version of jaxrnn: its calls bear the version in their names.
    On other platforms it is the same program as without, and needs nothing. T and B may be
    symbolic, as in ``jax.export.symbolic_shape``, for gated cells; others, such as attention, a
    matrix memory and a cell of ``lifted``, keep their kernel only of sizes that are known.

    Args:
      function: of arrays; it calls ``jaxrnn.unroll``, or has called it in ``jax.grad``.
      platforms: as for ``jax.export.export``, "cpu" among them; None for JAX's default.

    Returns:
      A function of the arguments, or of ``jax.ShapeDtypeStruct`` in their place, that gives a
      ``jax.export.Exported``.

    Raises:
      ValueError: at the call: no kernel runs in the program. ``jaxrnn.explain`` says why.

    >>> cell = jaxrnn.gru(hidden=8)
    >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 2, 3))
    >>> unroll = lambda params, xs: jaxrnn.unroll(cell, params, xs)[1]
    >>> if "cpu" == jaxrnn.explain(cell, params, xs, platform="cpu").choices[0].runs:
    ...     exported = jaxrnn.export_with_kernels(unroll, platforms=["cpu"])(params, xs)
    ...     print(exported.out_avals)
    (ShapedArray(float32[5,2,8]),)
    """
    jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
    names = [native.exported(name) for name in native.CALLS]
    disabled = [jax.export.DisabledSafetyCheck.custom_call(name) for name in names]
    export = jax.export.export(jitted, platforms=platforms, disabled_checks=disabled)

    def exported(*args, **kwargs):
        with dispatch.keeping_kernels(True):
            program = export(*args, **kwargs)
        text = program.mlir_module()
        if not any(f"@{name}(" in text or f'@"{name}"(' in text for name in names):
            raise ValueError(
                f"function: got a program for {program.platforms} in which the C++ kernel runs"
                " nothing; see jaxrnn.explain, or use jax.export.export"
            )
        return program

    return exported


def load_kernels() -> None:
    """Makes the C++ kernel known to programs that ``export_with_kernels`` made.

    To be called once by a process before it runs such a program on a CPU.

    Raises:
      RuntimeError: the kernel is not there; it says why.

    >>> jaxrnn.load_kernels()  # doctest: +SKIP
    """
    missing = native.library().missing
    if missing:
        raise RuntimeError(f"the kernel for CPUs is missing: {missing}")
