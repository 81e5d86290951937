"""One attention layer in jaxrnn, PyTorch and Flax, in turn, in one run.

All have the same projections: queries, keys and values, and the output's. jaxrnn's has rotary
positions beside, which the others do without. A ratio is a peer's time over jaxrnn's.
"""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from benchmarks.shared import ceiling, display, machine, record, timing
from benchmarks.shared.contenders import DIRECTIONS, OURS, timed
from benchmarks.shared.options import several
from benchmarks.shared.words import against, best, quotient

PACKAGES = (*machine.PACKAGES, "torch")
NOTES = ceiling.NOTES | {
    "samples": "seconds of the second of two calls in a row; sample i of all contenders is from"
    " round i",
    "ratio": "the contender's time over jaxrnn's, round by round: [median, lower quartile, upper]",
    "missing": "why a contender did not run",
}


class Shape(NamedTuple):
    """B sequences of T steps; H the width of input, output and all N heads together."""

    B: int
    T: int
    H: int
    N: int

    def __str__(self):
        return f"T={self.T} H={self.H} (B={self.B} N={self.N})"


TOKENS = 16384  # of a batch
SHAPES = tuple(
    Shape(TOKENS // steps, steps, hidden, heads)
    for hidden, heads in ((128, 4), (512, 8))
    for steps in (256, 1024, 4096, 16384)
)


def ours(shape, direction, dtype):
    layer = jaxrnn.attention(shape.H, heads=shape.N, context=shape.T)
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), shape.H))
    return _with_jax(lambda p, xs: jaxrnn.unroll(layer, p, xs)[1], params, shape, direction, dtype)


def linen(shape, direction, dtype):
    from flax import linen as nn

    layer = nn.MultiHeadDotProductAttention(shape.N, dtype=dtype, use_bias=False)
    xs = jax.ShapeDtypeStruct((shape.B, shape.T, shape.H), dtype)
    params = jax.eval_shape(lambda xs: layer.init(jax.random.key(0), xs), xs)

    def apply(params, xs):
        causal = nn.make_causal_mask(jnp.ones((1, shape.T)))
        return layer.apply(params, xs, mask=causal)

    return _with_jax(apply, params, shape, direction, dtype, batch_first=True)


def torch(shape, direction, dtype):
    """``torch.nn.functional.scaled_dot_product_attention``, which is fused."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if jax.default_backend() != "cpu":
        raise ImportError("torch's attention is a peer on a CPU alone")
    torch.set_num_threads(machine.cores())
    dtype, (B, T, H, N) = getattr(torch, jnp.dtype(dtype).name), shape
    into, out = (torch.nn.Linear(H, n * H, bias=False).to(dtype) for n in (3, 1))
    xs, weights = (torch.tensor(a).to(dtype) for a in _data((B, T, H), np.float32))

    def layer(xs):
        qkv = into(xs).view(B, T, 3, N, H // N).permute(2, 0, 3, 1, 4)
        ys = scaled_dot_product_attention(*qkv, is_causal=True)
        return out(ys.transpose(1, 2).reshape(B, T, H))

    def forward():
        with torch.no_grad():
            return layer(xs)

    def value_and_grad():
        moving = (*into.parameters(), *out.parameters(), xs.requires_grad_())
        return torch.autograd.grad((layer(xs) * weights).sum(), moving)

    return forward if direction == "forward" else value_and_grad


CONTENDERS = {OURS: ours, "torch": torch, "linen": linen}
"""Each ``(shape, direction, dtype) -> call``, by name."""
# Flax keeps all scores: beyond this many it would take the machine's memory.
MOST_SCORES = 1 << 28


def _with_jax(apply, params, shape, direction, dtype, batch_first=False):
    sizes = (shape.B, shape.T) if batch_first else (shape.T, shape.B)
    data = _data((*sizes, shape.H), dtype)
    params = jax.tree.map(lambda p: _random(p.shape, dtype) * shape.H**-0.5, params)
    args = jax.tree.map(jnp.asarray, (params, *data))
    program, _ = timing.compiled(timed(apply, direction), *args)
    return lambda: program(*args)


def _data(shape, dtype):
    """xs, and what ys is multiplied with."""
    return [_random(shape, dtype), _random(shape, dtype, 1)]


def _random(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks attention",
        description="Times an attention layer against the same in other libraries.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    lengths, widths = ([*dict.fromkeys(getattr(s, n) for s in SHAPES)] for n in "TH")
    peers = [name for name in CONTENDERS if name != OURS]
    for option, known, kind in (
        ("lengths", lengths, int),
        ("widths", widths, int),
        ("directions", DIRECTIONS, str),
        ("peers", peers, str),
    ):
        several(parser, option, known, kind=kind)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seconds", type=float, default=10.0, help="to time each row, about")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen = parse(argv)
    console, about = display.console(), machine.describe(PACKAGES)
    path = chosen.out / f"attention-{about['platform']}.json"
    begun = record.begun("attention", about, NOTES, chosen)
    cases = [
        (direction, shape)
        for direction in chosen.directions
        for shape in SHAPES
        if shape.T in chosen.lengths and shape.H in chosen.widths
    ]
    rows = []
    console.print(f"[bold]One attention layer, {chosen.dtype}[/]\n{machine.line(about)}\n")
    with display.progress(console, len(cases)) as step:
        for direction, shape in cases:
            with step(f"{direction:<14} {shape}") as done:
                row = measure(chosen, direction, shape)
                ratios = [f"{n} / jaxrnn {quotient(r)}" for n, r in row["ratio"].items()]
                part = ceiling.part(row, operations(row), OURS)
                done(", ".join([f"{part} of the ceiling", *ratios]))
            rows.append(row)
            record.save(path, begun | {"words": sentences(rows), "rows": rows})
    console.print(f"written: {path}\n")
    for sentence in sentences(rows):
        console.print(sentence)
    return 0


def measure(chosen, direction, shape):
    """One row: all contenders on one layer."""
    calls, missing = {}, {}
    for name in (OURS, *chosen.peers):
        try:
            if name == "linen" and shape.B * shape.N * shape.T**2 > MOST_SCORES:
                raise ImportError("it keeps all scores, which are too many")
            calls[name] = CONTENDERS[name](shape, direction, chosen.dtype)
        except ImportError as error:
            missing[name] = str(error)
    most = ceiling.Ceiling(chosen.dtype, chosen.peers)
    most.sample()
    samples = timing.interleaved(calls, seconds=chosen.seconds)
    most.sample()
    return {
        "direction": direction,
        "shape": shape._asdict(),
        "samples": samples,
        "missing": missing,
        "ceiling": most.found(),
        "seconds": {name: timing.summary(s).median for name, s in samples.items()},
        "ratio": {n: list(timing.ratio(samples[n], samples[OURS])) for n in samples if n != OURS},
        "load": machine.load(),
    }


def operations(row):
    """Of a layer's products: four projections, and scores and sums of half of all pairs."""
    shape = Shape(**row["shape"])
    forward = 2 * shape.B * shape.T * shape.H * (4 * shape.H + shape.T)
    return forward if row["direction"] == "forward" else 3 * forward


def sentences(rows):
    """What was measured, in words."""
    out = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        for peer in CONTENDERS:
            ratios = {
                str(Shape(**row["shape"])): best(row, (peer,))
                for row in rows
                if row["direction"] == direction and best(row, (peer,))
            }
            if ratios:
                out.append(f"{direction.replace('_', ' ')}: {against(peer, ratios)}")
    return out
