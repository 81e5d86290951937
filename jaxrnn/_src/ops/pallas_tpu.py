"""What the kernels for TPUs share, of whichever operation: when one can run, and its call."""

import jax

INTERPRETED = False  # in tests: whoever names it has it on a CPU, by Pallas' interpreter


def interpreted(problem):
    """Whether a problem is a test's."""
    return INTERPRETED and problem.implementation == "tpu"


def unsupported(problem, target, *, sizes, types, known, specs):
    """Why no kernel can run a problem on a ``Target``; None if one may.

    Args:
      problem: with its ``implementation``.
      sizes: of its arrays.
      types: names of theirs.
      known: names of those the kernel knows.
      specs: how ``jax.shard_map`` divides arguments and results by an axis "batch".
    """
    test = interpreted(problem)
    if target.platform != "tpu" and not test:
        return f"it is for TPUs, not for {target.platform}"
    if not all(isinstance(n, int) for n in sizes):
        return "a size is symbolic"
    if target.devices > 1 and target.mesh is None and not test:
        return (
            f"of the {target.devices} devices no mesh is known, to divide rows over: place arrays"
            " on one, or call jax.set_mesh; inside of jax.shard_map(run,"
            f" {specs}, check_vma=False) over all axes each device runs its own kernel"
        )
    if not set(types) <= set(known) and not test:
        return f"types are {sorted(set(types))}; the kernel knows {sorted(known)}"
    return None


def call(kernel, args, **options):
    """``pallas_call(kernel, **options)(*args)``.

    A TPU has integers of 32 bits, whatever JAX's default is.
    """
    from jax.experimental import pallas as pl

    with jax.enable_x64(any(a.dtype == "float64" for a in jax.tree.leaves(args))):
        return pl.pallas_call(kernel, **options)(*args)
