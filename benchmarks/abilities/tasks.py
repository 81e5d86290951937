"""The tasks: random sequences, and what is to be answered at which steps."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.abilities import expressions

DATA = 16  # symbols to be copied or recalled
COPIED = 8
KEYS = 128
CLOSE = 0.04  # of the sum of two numbers from 0 to 1, as Hochreiter & Schmidhuber 1997 count it


class Task(NamedTuple):
    """A task.

    Attributes:
      make: ``(key, length) -> (xs [T, I], wanted [T], asked bool [T])`` of one random sequence.
      inputs, outputs: I, and how many answers there are; one number where ``numbers``.
      paper: where it is from.
      last: the share of right answers is of each sequence's last one, not of all.
      convolved: the model has a convolution over 4 steps before the cell.
      numbers: the answer is a number, right within ``CLOSE``.
      varied: several lengths are trained. Of one, a model learns what holds there alone: after how
        many steps a sum is asked, that always eight symbols are.
    """

    make: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    inputs: int
    outputs: int
    paper: str
    last: bool = True
    convolved: bool = False
    numbers: bool = False
    varied: bool = False


def parity(key, length):
    bits = jax.random.randint(key, (length,), 0, 2)
    return jax.nn.one_hot(bits, 2), jnp.cumsum(bits) % 2, jnp.ones(length, bool)


def word_problem(products, generators, key, length):
    """The product so far of elements that generate a group, which its table of products gives.

    Words are of few generators: a table of all pairs of 60 elements would take more training to
    learn than to follow.
    """
    table = jnp.asarray(products)
    symbols = jax.random.randint(key, (length,), 0, len(generators))

    def step(before, element):
        after = table[before, element]
        return after, after

    _, wanted = jax.lax.scan(step, jnp.int32(0), jnp.asarray(generators)[symbols])
    return jax.nn.one_hot(symbols, len(generators)), wanted, jnp.ones(length, bool)


@functools.cache
def permutations(count, even):
    """S_n or, of even ones, A_n for an odd n: the table of products, and what generates all.

    A product is a, then b. The identity is element 0, and among the generators; the others are a
    cycle of all and one of the first two, or of the first three.
    """
    parity = lambda p: sum(a > b for a, b in itertools.combinations(p, 2)) % 2
    found = [p for p in itertools.permutations(range(count)) if not (even and parity(p))]
    place = {p: i for i, p in enumerate(found)}
    then = lambda a, b: place[tuple(b[i] for i in a)]
    table = np.array([[then(a, b) for b in found] for a in found], np.int32)
    cycle = lambda n: (*range(1, n), 0, *range(n, count))
    generators = [place[p] for p in (cycle(1), cycle(3 if even else 2), cycle(count))]
    return table, np.array(generators, np.int32)


def recall(key, length):
    """Pairs of a key and a value, then each key again: its value is asked."""
    pairs = length // 3
    if not 0 < pairs <= KEYS:
        raise ValueError(f"length: got {length}, want 3 to {3 * KEYS + 2}")
    of_keys, of_values, of_order = jax.random.split(key, 3)
    keys = jax.random.permutation(of_keys, KEYS)[:pairs]
    values = jax.random.randint(of_values, (pairs,), 0, DATA)
    order = jax.random.permutation(of_order, pairs)
    rest = length - 3 * pairs
    first = jnp.stack([keys, KEYS + values], 1).reshape(2 * pairs)
    padding = jnp.full(rest, KEYS + DATA)
    tokens = jnp.concatenate([first, padding, keys[order]])
    wanted = jnp.concatenate([jnp.zeros(length - pairs, jnp.int32), values[order]])
    asked = jnp.arange(length) >= length - pairs
    return jax.nn.one_hot(tokens, KEYS + DATA + 1), wanted, asked


def copying(key, length):
    """Symbols among noise, in order, at the end."""
    count = min(COPIED, length // 4)
    of_places, of_symbols = jax.random.split(key)
    places = jnp.sort(jax.random.permutation(of_places, length - count)[:count])
    symbols = jax.random.randint(of_symbols, (count,), 0, DATA)
    tokens = jnp.full(length - count, DATA).at[places].set(symbols)
    tokens = jnp.concatenate([tokens, jnp.full(count, DATA + 1)])
    wanted = jnp.concatenate([jnp.zeros(length - count, jnp.int32), symbols])
    return jax.nn.one_hot(tokens, DATA + 2), wanted, jnp.arange(length) >= length - count


def induction(key, length):
    """What followed a mark, asked at the next mark, which is the last step."""
    of_tokens, of_place = jax.random.split(key)
    tokens = jax.random.randint(of_tokens, (length,), 0, DATA)
    place = jax.random.randint(of_place, (), 0, length - 2)
    answer = tokens[place + 1]
    tokens = tokens.at[place].set(DATA).at[length - 1].set(DATA)
    wanted = jnp.full(length, answer)
    return jax.nn.one_hot(tokens, DATA + 1), wanted, jnp.arange(length) == length - 1


def adding(key, length):
    """The sum of two marked numbers, one of each half."""
    of_numbers, *of_places = jax.random.split(key, 3)
    numbers = jax.random.uniform(of_numbers, (length,))
    half = length // 2
    first = jax.random.randint(of_places[0], (), 0, half)
    second = jax.random.randint(of_places[1], (), half, length)
    total = numbers[first] + numbers[second]
    marks = jnp.zeros(length).at[first].set(1.0).at[second].set(1.0)
    wanted = jnp.full(length, total)
    return jnp.stack([numbers, marks], -1), wanted, jnp.arange(length) == length - 1


def _word(count, even):
    products, generators = permutations(count, even)
    make = functools.partial(word_problem, products, generators)
    return Task(make, len(generators), len(products), "Liu et al. 2023, arXiv:2210.10749")


def _expression(make):
    size = len(expressions.SYMBOLS)
    return Task(make, size, expressions.MODULUS, "Delétang et al. 2023, arXiv:2207.02098")


TASKS = {
    "parity": lambda: Task(parity, 2, 2, "Delétang et al. 2023, arXiv:2207.02098"),
    "modular": lambda: _expression(expressions.flat),
    "brackets": lambda: _expression(expressions.nested),
    "s3": lambda: _word(3, even=False),
    "a5": lambda: _word(5, even=True),
    "s5": lambda: _word(5, even=False),
    "mqar": lambda: Task(
        recall,
        KEYS + DATA + 1,
        DATA,
        "Arora et al. 2023, arXiv:2312.04927",
        last=False,
        convolved=True,
    ),
    "copying": lambda: Task(
        copying,
        DATA + 2,
        DATA,
        "Gu & Dao 2023, arXiv:2312.00752",
        last=False,
        convolved=True,
        varied=True,
    ),
    "induction": lambda: Task(
        induction, DATA + 1, DATA, "Gu & Dao 2023, arXiv:2312.00752", convolved=True
    ),
    "adding": lambda: Task(
        adding, 2, 1, "Hochreiter & Schmidhuber 1997", numbers=True, varied=True
    ),
}
