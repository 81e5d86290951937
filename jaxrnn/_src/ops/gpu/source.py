"""What every kernel's text begins with, and what it calls types and the factors of products."""

import functools
import pathlib

import jax
import numpy as np

from jaxrnn._src.ops.gpu import launch

TYPES = {"float32": "Float32", "bfloat16": "Bfloat16", "float16": "Float16"}
# What `jax.default_matmul_precision` is where XLA rounds the factors of a float32 product.
_ROUNDED = (
    None,
    "default",
    "fastest",
    "bfloat16",
    "tensorfloat32",
    "BF16_BF16_F32",
    "TF32_TF32_F32",
)


def factors(dtype: np.dtype) -> tuple[str, ...]:
    """What the preprocessor is to know of the factors of products, of a type in ``TYPES``."""
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    precise = dtype.name == "float32" and precision not in _ROUNDED
    return (f"PRODUCT_{dtype.name.upper()}", *["PRECISE"] * precise)


def device() -> str:
    """What every kernel begins with, after words for the preprocessor."""
    return f"static constexpr int MOST_ARRAYS = {launch.MOST_ARRAYS};\n{_device()}"


@functools.cache
def _device():
    return (pathlib.Path(__file__).parent / "device.cu").read_text()
