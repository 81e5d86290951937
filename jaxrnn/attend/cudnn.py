"""cuDNN's fused attention, through ``jax.nn.dot_product_attention``."""

import jax
import jax.numpy as jnp


def unsupported(problem, operands, target):
    """Why cuDNN can't run the problem; None if it can."""
    width, dtype = operands.q.shape[-1], operands.q.dtype
    if target.platform not in ("gpu", "cuda"):
        return "needs an NVIDIA GPU"
    if not problem.plain:
        return "no lengths, mask, starts or carried state"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"products in bfloat16 or float16 only, here {dtype}"
    if width % 8 or width > 128:
        return f"heads of a width that is a multiple of 8, 128 at most, here {width}"
    if jax.default_backend() != "gpu":
        return "cuDNN is asked for what it can do, and this machine has none"
    return None


def forward(problem, operands, save, target):
    """Returns (ys,), then the residual of the online form, which ``backward`` has no use for."""
    del target
    ys = _attend(problem, *operands[:3])
    return (ys, jnp.zeros(ys.shape[:-1], jnp.float32)) if save else (ys,)


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients; runs cuDNN's forward once more for its own residual."""
    del outputs, residuals, wanted, target
    _, pull = jax.vjp(lambda *qkv: _attend(problem, *qkv), *operands[:3])
    q, k, v = pull(cotangents[0])
    return operands._replace(q=q, k=k, v=v)


def _attend(problem, q, k, v):
    batch = q.shape[:-3]
    window = None if problem.window is None else (problem.window - 1, 0)
    ys = jax.nn.dot_product_attention(
        *(a.reshape(-1, *a.shape[-3:]) for a in (q, k, v)),
        is_causal=True, local_window_size=window, implementation="cudnn",
    )  # fmt: skip
    return ys.reshape(*batch, *ys.shape[1:])
