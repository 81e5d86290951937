"""The closed loop: what a cell gives is, through a function, what it reads next."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax import lax

from jaxrnn._src.core import checks, dropout_masks, inputs, wide_scan
from jaxrnn._src.core.cell import Cell, check_cell, check_deterministic, unroll
from jaxrnn._src.core.compile_once import kept_by
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.params_tree import dicts
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.typing import Array, InputArray, Inputs, Params, PRNGKey, State


class Generated(NamedTuple):
    """What ``generate`` gives; a row that has stopped has zeros from then on.

    Attributes:
      state: the state before the last of ``xs`` is read.
      xs: the inputs that were chosen, [steps, ...batch, ...].
      ys: the outputs that each was chosen from, [steps, ...batch, O].
      lengths: how many there are in each row, the one that stopped it included, int32 [...batch].
    """

    state: Any
    xs: Any
    ys: Any
    lengths: jax.Array


def generate(
    cell: Cell,
    params: Params,
    prompt: Inputs,
    steps: int,
    choose: Callable[[Any, Any], Any],
    *,
    state: State | None = None,
    lengths: InputArray | Sequence[int] | None = None,
    key: PRNGKey | None = None,
    stop: int | Callable[[Any], Array] | None = None,
    teacher: Inputs | None = None,
    forced: InputArray | None = None,
    deterministic: bool = True,
) -> Generated:
    """Runs a cell on a prompt, then on what is chosen from its own outputs.

        y_t = cell(x_t)      x_{t+1} = choose(key_t, y_t)

    The prompt is read by ``jaxrnn.unroll``, on the fastest implementation; the rest is one
    compiled loop. To go on, call it again with ``state=made.state`` and ``prompt=made.xs[-1:]``,
    if no row has stopped.

    Args:
      cell, params: see ``jaxrnn.unroll``.
      prompt: xs [S, ...batch, I], or tokens [S, ...batch]; one step at least.
      steps: how many inputs are chosen, an int.
      choose: ``(key, y) -> x``, [...batch, O] to the next input, as ``jaxrnn.sample``; ``key``
        differs at every step, and is None without one. Functions that are equal compile once.
      state: the state before the prompt; None for the initial state.
      lengths: int [...batch], 1 to S: the steps of the prompt that are real in each row.
      key: a ``jax.random`` key for ``choose``.
      stop: a token, or a function ``x -> bool [...batch]``: the row ends where it is chosen.
      teacher, forced: inputs [steps, ...batch, ...], and bool [steps, ...batch]. Where it is
        true, the input of ``teacher`` is read in place of the chosen one: all true is teacher
        forcing, a part at random scheduled sampling (Bengio et al. 2015, arXiv:1506.03099).
      deterministic: False in training, where a cell that draws random numbers uses ``key`` too.

    Returns:
      A ``Generated``: ``(state, xs, ys, lengths)``.

    Raises:
      ValueError, TypeError: at trace time, naming the argument, what came and what is wanted.

    >>> cell = jaxrnn.stack(jaxrnn.embedding(256, 8), jaxrnn.lstm(16), jaxrnn.project(256))
    >>> params = cell.init(jax.random.key(0), None)
    >>> prompt = jnp.array(list(b"Once"))
    >>> choose = jaxrnn.sample(temperature=0.7, top_k=40)
    >>> made = jaxrnn.generate(cell, params, prompt, 20, choose, key=jax.random.key(1), stop=10)
    >>> made.xs.shape, made.ys.shape, int(made.lengths) <= 20
    ((20,), (20, 256), True)
    """
    check_cell("cell", cell)
    checks.check_all_inputs(prompt, "[S, ...batch, I]")
    params, prompt = dicts(params), jax.tree.map(jnp.asarray, prompt)
    steps, (size, *batch) = checks.size("steps", steps), inputs.leading(prompt)
    if not size:
        raise ValueError("prompt: got S = 0 steps, want one or more")
    check_deterministic(cell, deterministic, key)
    if key is not None:
        checks.check_key(key)
    if (teacher is None) != (forced is None):
        raise ValueError("teacher, forced: got one of them, want both or none")
    if forced is not None:
        checks.check_flags("forced", forced, (steps, *batch), "[steps, ...batch]")
    if not callable(choose):
        raise TypeError(f"choose: got {checks.described(choose)}, want a function (key, y) -> x")
    before, lengths, first = last_step(prompt, lengths)
    inner = None if deterministic else dropout_masks.fold(key, 0)
    state, _ = unroll(cell, params, before, state, lengths=lengths, key=inner)
    run = kept_by(cell, _run, "choose", "stop")
    time = jnp.arange(steps, dtype=jnp.int32)
    outer = key if deterministic else dropout_masks.fold(key, 1)
    return run(params, state, first, (time, teacher, forced), outer, inner, choose, stop)


def last_step(
    prompt: Inputs, lengths: InputArray | Sequence[int] | None
) -> tuple[Inputs, Array | None, Inputs]:
    """``(before, lengths, last)``: each row's last real step, apart from the steps before it.

    Args:
      prompt: xs [S, ...batch, ...], a tree of arrays; S > 0.
      lengths: int [...batch], 1 to S; None for S.

    Raises:
      ValueError, TypeError: they are of another shape or type, or out of range where known.
    """
    before = jax.tree.map(lambda a: a[:-1], prompt)
    if lengths is None:
        return before, None, jax.tree.map(lambda a: a[-1], prompt)
    checks.combined_mask(prompt, lengths, None)  # checks them
    rows = jnp.asarray(lengths)
    if not isinstance(rows, jax.core.Tracer) and (rows < 1).any():
        raise ValueError(f"lengths: got {int(rows.min())}, want 1 or more")
    rows = jnp.clip(rows, 1, inputs.leading(prompt)[0]) - 1
    return before, rows, jax.tree.map(lambda a: _at(a, rows), prompt)


def _run(cell, params, state, x, timed, key, inner, choose, stop):
    rows = jnp.ones(inputs.leading(x), bool)

    def body(carry, now):
        (state, x, active), (time, teacher, forced) = carry, now
        new, y = cell.step(params, state, x, inner)
        chosen = choose(dropout_masks.fold(key, time), y)
        _check_like("choose", chosen, x)
        if forced is not None:
            _check_like("teacher", teacher, x)
            chosen = select(forced, teacher, chosen)
        state = select(active, new, state)
        emitted = select(active, (chosen, y), 0)
        after = active if stop is None else active & ~_stopped(stop, chosen)
        return (state, chosen, after), (*emitted, active)

    (state, _, _), (xs, ys, active) = wide_scan.scan(body, (state, x, rows), timed)
    return Generated(state, xs, ys, active.sum(0, dtype=jnp.int32))


def _stopped(stop, x) -> Array:
    ended = stop(x) if callable(stop) else x == stop
    checks.check_flags("stop", ended, inputs.leading(x), "[...batch]")
    return jnp.asarray(ended)


def _at(a, time):
    """The step of each row [...batch] in an array [S, ...batch, ...]."""
    time = time.reshape(1, *time.shape, *[1] * (a.ndim - time.ndim - 1))
    return jnp.take_along_axis(a, time, 0)[0]


def _check_like(name, x, like):
    """An input is as those of the prompt are."""
    shown = lambda tree: jax.tree.map(checks.described, tree)
    if shown(x) != shown(like):
        raise ValueError(f"{name}: got {shown(x)}, want {shown(like)}, as a step of the prompt")


@dataclasses.dataclass(frozen=True)
class sample:  # noqa: N801, a function with what it was made of
    """Draws a token from logits: what ``choose`` is in ``generate`` for a language model.

    The draw of a row is a function of the key and the row's number alone.

    Args:
      temperature: what the logits are divided by; 0 takes the likeliest token, without a key.
      top_k: only so many of the likeliest tokens are drawn (Fan et al. 2018, arXiv:1805.04833),
        and what ties with the last of them; None for all.

    Returns:
      ``(key, logits) -> tokens``, floating [...batch, V] to int32 [...batch].

    Raises:
      ValueError: ``temperature`` is below 0; ``top_k`` is more than V; there is no key.

    >>> logits = jnp.log(jnp.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]]))
    >>> jaxrnn.sample(temperature=0)(None, logits)
    Array([2, 0], dtype=int32)
    """

    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if checks.number("temperature", self.temperature) < 0:
            raise ValueError(f"temperature: got {self.temperature}, want 0 or more")
        if self.top_k is not None:
            checks.size("top_k", self.top_k)

    def __call__(self, key: PRNGKey | None, logits: InputArray) -> Array:
        checks.check_floating("logits", logits)
        if self.temperature == 0:
            return jnp.argmax(logits, -1).astype(jnp.int32)
        if key is None:
            want = "a key: only temperature=0 draws nothing"
            raise ValueError(f"key: got None, want {want}")
        logits = jnp.asarray(logits).astype(promoted(logits.dtype, jnp.dtype("float32")))
        if self.top_k is not None:
            if self.top_k > logits.shape[-1]:
                raise ValueError(f"top_k: got {self.top_k}, want {logits.shape[-1]} at most")
            least = lax.top_k(logits, self.top_k)[0][..., -1:]
            least = jnp.broadcast_to(least, logits.shape)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        *batch, _ = logits.shape
        draw: Callable = lambda row, own: jax.random.categorical(jax.random.fold_in(key, row), own)
        for _ in batch:
            draw = jax.vmap(draw)
        rows = jnp.arange(logits[..., 0].size, dtype=jnp.int32).reshape(batch)
        return draw(rows, logits / self.temperature).astype(jnp.int32)
