"""The rules by which matrix memories decay and write, each by the name of a cell that has it.

    S = (decay + a b') S + k v'      y = S' q

In the delta rule a and b are made of k; in RWKV-7 they are vectors of their own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops import delta_rule, matrix_memory
from jaxrnn._src.ops.delta_rule import xla

BASE = "linear_attention"  # what the others are held against


class Rule(NamedTuple):
    """What a step does.

    Attributes:
      decay: how many numbers a head's decay has: none, "one", or one for "each" key.
      delta: whether what is at a key makes room for the value.
      apart: whether a, b and k are three vectors.
      before: whether a step reads the memory that it finds.
      writes: how often a step writes, which counts as so many steps.
      gates: whether it is the mLSTM's memory, whose input gate is an exponential.
    """

    decay: str = "none"
    delta: bool = False
    apart: bool = False
    before: bool = False
    writes: int = 1
    gates: bool = False


RULES = {
    BASE: Rule(),
    "mamba2": Rule("one"),
    "mlstm": Rule("one", gates=True),
    "gla": Rule("each"),
    "rwkv6": Rule("each", before=True),
    "delta_net": Rule(delta=True),
    "delta_product": Rule(delta=True, writes=2),
    "gated_delta_net": Rule("one", delta=True),
    "kimi_delta": Rule("each", delta=True),
    "rwkv7": Rule("each", delta=True, apart=True),
}


class Size(NamedTuple):
    """T steps of B rows of N heads, with keys and values of width D."""

    T: int
    B: int
    N: int
    D: int

    def __str__(self):
        return " ".join(f"{letter}={size}" for letter, size in self._asdict().items())


def arrays(name, size):
    """What the operation of a rule takes, float32: random numbers, without the state."""
    rule = RULES[name]
    shape = size.T * rule.writes, *size[1:]
    draws = iter(jax.random.split(jax.random.key(0), 8))
    vector = lambda: jax.random.normal(next(draws), shape)
    number = lambda: jax.random.normal(next(draws), shape[:3])
    q, k, v = _unit(vector()), _unit(vector()), vector()
    if rule.gates:
        return q, k, v, jax.nn.log_sigmoid(number() + 3), number()
    log_w = {"none": lambda: None, "one": lambda: number()[..., None], "each": vector}[
        rule.decay
    ]()
    log_w = None if log_w is None else jax.nn.log_sigmoid(log_w + 3)
    if not rule.delta:
        return q, k, v, log_w, None, None
    beta = jax.nn.sigmoid(number())[..., None]
    a, b = (-beta * _unit(vector()), _unit(vector())) if rule.apart else (None, k)
    b = b if log_w is None else b * jnp.exp(log_w)
    return q, beta * k, v, log_w, a, b


def ours(name, taken, implementation=None):
    """What each step reads, [T, B, N, D]: as the library chooses, or by one implementation."""
    rule, more = RULES[name], dict(implementation=implementation)
    if rule.gates:
        state = _memory(taken), jnp.zeros(taken[0].shape[1:3])
        _, (ys, _) = matrix_memory.matrix_memory(*taken, state, stabilised=True, **more)
    else:
        _, ys = delta_rule.delta_rule(taken, _memory(taken), before=rule.before, **more)
    return ys[rule.writes - 1 :: rule.writes]


def scan(name, taken):
    """``jax.lax.scan`` of the step."""
    return ours(name, taken, "reference")


def chunks(name, taken):
    """In chunks, as accelerators run it; on a CPU the library may choose steps instead."""
    rule = RULES[name]
    if rule.gates:
        return ours(name, taken, "xla")
    problem = delta_rule.Problem(rule.before, False, "xla")
    operands = delta_rule.Operands(*taken, _memory(taken), None, None)
    _, ys = xla.forward(problem, operands, (True, True), False, Target("tpu"))
    return ys[rule.writes - 1 :: rule.writes]


def over_base(row, rows):
    """Of each way, cycles over those of linear attention in chunks, for each write of a step."""
    same = (r for r in rows if (r["chip"], r["rule"]) == (row["chip"], BASE))
    base = next((r for r in same if r["contender"] == "jaxrnn"), None)
    if base is None:
        return []
    writes, ways = RULES[row["rule"]].writes, ("forward", "backward")
    return [row[way]["cycles"] / base[way]["cycles"] / writes for way in ways]


def _unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _memory(taken):
    q, _, v, *_ = taken
    return jnp.zeros((*q.shape[1:], v.shape[-1]))
