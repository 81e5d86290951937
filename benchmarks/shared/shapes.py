"""The named shapes of the single-layer benchmarks, shared with the tests."""

from typing import NamedTuple


class Shape(NamedTuple):
    """B sequences of T steps, from I input features to H hidden units."""

    name: str
    B: int
    T: int
    I: int  # noqa: E741, the letter of the whole library
    H: int

    def __str__(self):
        return f"{self.name} (B={self.B} T={self.T} I={self.I} H={self.H})"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("stream", 1, 1024, 128, 128),
        Shape("small", 32, 256, 128, 128),
        Shape("medium", 32, 512, 256, 256),
        Shape("large", 64, 256, 512, 512),
        Shape("long-stream", 1, 8192, 64, 128),
        Shape("long", 8, 2048, 128, 256),
        Shape("tiny-long", 1, 10000, 8, 16),
        Shape("wide-batch", 1024, 64, 64, 64),
    )
}

# What accelerators are bought for: small batches, whose steps wait for the weights, and large.
WIDE = {
    shape.name: shape
    for shape in (
        Shape(f"h{hidden}-b{batch}", batch, 512, hidden, hidden)
        for hidden in (512, 768, 1024, 2048)
        for batch in (16, 64)
    )
}
