"""cuDNN's fused attention, through ``jax.nn.dot_product_attention``."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxrnn._src.core.lowering_target import MIXED

EXPORTED = False  # JAX exports no calls of cuDNN: it promises nothing of them for later
_LEAST = 8.0  # compute capability: that of Ampere


def unsupported(problem, operands, target):
    """Why cuDNN can't run the problem; None if it can."""
    *sizes, width = operands.q.shape
    dtype = operands.q.dtype
    if target.platform not in ("gpu", "cuda"):
        return "needs an NVIDIA GPU"
    if target.mixed:
        return MIXED
    if not problem.plain:
        return "no lengths, mask, starts or carried state"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"products in bfloat16 or float16 only, here {dtype}"
    if not isinstance(width, int) or width % 8 or width > 128:
        return f"heads of a width that is a multiple of 8, 128 at most, here {width}"
    if not all(isinstance(size, int) and size for size in sizes):
        return f"sizes that are known and not zero, here {tuple(sizes)}"
    capability = _capability(target.chip)
    if capability is None:
        return f"a GPU that this machine has, to be asked what it can do, here {target.chip}"
    if capability < _LEAST:
        return f"a GPU of compute capability {_LEAST} or more, here {capability}"
    return None


def _capability(chip):
    """The compute capability of the chip lowered for; None if no NVIDIA GPU here is one.

    ``chip`` is a ``jax.Device.device_kind``. A machine may have GPUs of several kinds, and the
    default device may be none of them.
    """
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:  # JAX has no such backend here
        return None
    return next((float(d.compute_capability) for d in devices if d.device_kind == chip), None)


def forward(problem, operands, wanted, save, target):
    """Returns (ys,), then the residual of the online form, which ``backward`` has no use for."""
    del wanted, target
    if not save:
        return (_attend(problem, *operands[:3]),)
    # As in `backward`, so that XLA finds that both calls of cuDNN's are one.
    ys, _ = jax.vjp(functools.partial(_attend, problem), *operands[:3])
    return ys, jnp.zeros(ys.shape[:-1], jnp.float32)


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients; asks for cuDNN's forward once more, for its own residual."""
    del outputs, residuals, wanted, target

    @_all_mapped
    def gradients(*arrays):
        *qkv, d_ys = arrays
        return jax.vjp(functools.partial(_attend, problem), *qkv)[1](d_ys)

    q, k, v = gradients(*operands[:3], *cotangents)
    return operands._replace(q=q, k=k, v=v)


def _attend(problem, q, k, v):
    *batch, steps, heads, width = q.shape
    window = None
    if problem.window is not None and problem.window < steps:
        window = problem.window - 1, 0
    q, k, v = (a.reshape(-1, steps, heads, width) for a in (q, k, v))
    if steps % 2:  # JAX refuses odd numbers for a gradient, and cuDNN a single step
        q, k, v = (jnp.pad(a, ((0, 0), (0, 1), (0, 0), (0, 0))) for a in (q, k, v))
    ys = jax.nn.dot_product_attention(
        q, k, v, is_causal=True, local_window_size=window, implementation="cudnn"
    )
    return ys[:, :steps].reshape(*batch, steps, heads, width)


def _all_mapped(function):
    """``function`` of arrays with any batch axes; under ``vmap`` all of them get the new one.

    JAX 0.10 has no rule of its own for arrays of which some are mapped (``jax.jacrev``).
    """
    function = custom_vmap(function)

    @function.def_vmap
    def mapped(size, batched, *arrays):
        whole = (
            a if is_mapped else jnp.broadcast_to(a, (size, *a.shape))
            for a, is_mapped in zip(arrays, batched)
        )
        out = function(*whole)
        return out, (True,) * len(out)

    return function
