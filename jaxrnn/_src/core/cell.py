"""The cell and its law.

A recurrence has two views that must agree: one step, and the whole sequence.

    state, y  = cell.step(params, state, x)
    state, ys = unroll(cell, params, xs, state)         # always the same as scanning step

A ``Cell`` carries both. Scanning ``step`` is the meaning; ``unroll`` may be anything faster with
the same numbers. Time leads, any number of batch axes follows, features come last.

  lengths, mask   a step that is not real holds the state, and its output is exactly zero
  starts          a new episode begins before this step: the initial state is put back
  reverse         from the last step to the first; outputs stay at their input's time
  key             None is evaluation; randomness depends only on the key and on how many steps
                  have gone since the episode began, which a state may count
  dtypes          states are float32 at least; outputs have the inputs' type
"""

import dataclasses
import difflib
import functools
import inspect
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp

from jaxrnn._src.core import checks, dispatch, every_step, inputs
from jaxrnn._src.core.compile_once import once
from jaxrnn._src.core.options import Options
from jaxrnn._src.core.params_tree import Called, OfBatch, OfInputs, OfKey, OfSequence, dicts
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.sharding import automatic, varying
from jaxrnn._src.core.time_axis import mapped, own_lengths, segment_starts
from jaxrnn._src.core.time_division import divided
from jaxrnn._src.core.typing import (
    Array,
    Device,
    ImplementationName,
    Init,
    InitialState,
    InputArray,
    Inputs,
    Outputs,
    Params,
    PRNGKey,
    State,
    Step,
    StepWithKey,
    Unroll,
)

P = ParamSpec("P")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Cell:
    """A recurrence as a plain record of pure functions.

    A cell from a constructor prints as the call that made it, compares and hashes by that call,
    and pickles. A cell made by hand, or changed by ``dataclasses.replace``, compares by its
    functions. To JAX it is a tree without arrays: it can be an argument of ``jax.jit``, which
    compiles for each cell, and a field of any module.

    Attributes:
      init: ``(key, in_size) -> params``, a dict of arrays; ``in_size`` is I, None for integers,
        and a dict of these for a dict of inputs.
      initial_state: ``(params, batch_shape) -> state``, a tree of [...batch, ...] arrays.
      step: ``(params, state, x, key=None) -> (state, y)``, x [...batch, I], y [...batch, O];
        x and y may be other trees too, as a dict of arrays.
      unroll: ``(params, state, xs, options) -> (state, ys)``, ``options`` a ``jaxrnn.Options``:
        scanning ``step``. Called through ``jaxrnn.unroll``, which checks and completes arguments;
        ``state`` may be None for the initial state. If it also takes ``initial``, this is what
        ``starts`` puts back in place of the cell's own. If it takes ``every``, with
        ``every=True`` its second result is ``(ys, states)``, with the states after each step;
        of a cell that does not, ``return_states`` scans the step.
      draws: whether it draws random numbers, and so needs a key to train: what a module asks.
      states: names of the arrays of its state, in order, for ``jaxrnn.trace``. Those that have
        none are ``h``, the first, and ``state_1`` and so on.
      made: the call that made it; None of a cell made by hand, or changed since.
      gated: what a cell made by ``jaxrnn.gated`` shows of itself; None of others.

    Where these take ``params``, any mapping may come, as Flax's ``FrozenDict``: the functions see
    dicts. A part without parameters, as ``dropout`` in a stack, may be missing from them.

    Raises:
      TypeError: a cell made by hand is pickled, and one of its functions cannot be.

    >>> cell = jaxrnn.lstm(hidden=8)
    >>> cell == jaxrnn.lstm(8), hash(cell) == hash(jaxrnn.lstm(8))
    (True, True)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> state, y = cell.step(params, cell.initial_state(params, (2,)), jnp.ones((2, 3)))
    >>> y.shape
    (2, 8)
    """

    init: Init
    initial_state: InitialState
    step: Step
    unroll: Unroll
    draws: bool = False
    states: tuple[str, ...] = ()
    # Not arguments: so `dataclasses.replace` drops them, which say nothing of a changed cell.
    made: "Made | None" = dataclasses.field(default=None, init=False)
    gated: Any = dataclasses.field(default=None, init=False)  # `Parts`, of a module above this one

    def __post_init__(self) -> None:
        kinds = {
            "init": OfKey,
            "initial_state": OfBatch,
            "step": OfInputs,
            "unroll": OfSequence,
        }
        for name, kind in kinds.items():
            function = getattr(self, name)
            if not isinstance(function, Called):
                object.__setattr__(self, name, kind(function, name))

    def __repr__(self) -> str:
        if self.made is not None:
            return repr(self.made)
        return f"Cell({', '.join(f'{n}={repr_of(f)}' for n, f in self._functions().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __pdoc__(self, **options: Any) -> Any:
        """The line that Equinox prints for a cell in a module."""
        from wadler_lindig import TextDoc

        return TextDoc(repr(self))

    def __copy__(self) -> "Cell":
        return self  # a constant, like a tuple of functions

    def __deepcopy__(self, memo: dict[int, Any]) -> "Cell":
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self.made is not None:
            return self.made.again(), ()
        for name, function in self._functions().items():
            try:
                pickle.dumps(function)
            except Exception as error:
                raise TypeError(
                    f"pickle: the cell's {name} is {repr_of(function)}, which cannot be pickled;"
                    f" decorate what builds the cell with jaxrnn.constructor: {error}"
                ) from error
        return Cell, (*self._functions().values(), self.draws, self.states)

    def _functions(self) -> dict[str, Callable[..., Any]]:
        names = ("init", "initial_state", "step", "unroll")
        return {name: getattr(self, name) for name in names}

    def _identity(self) -> object:
        return self.made or (*self._functions().values(), self.draws, self.states)


def check_cell(name: str, cell: object) -> None:
    """``cell`` is one; ``name`` is what asks."""
    if not isinstance(cell, Cell):
        raise TypeError(f"{name}: got {checks.described(cell)}, want a Cell, as jaxrnn.lstm(128)")


def check_deterministic(cell: Cell, deterministic: bool, key: PRNGKey | None) -> None:
    """Training, which ``deterministic=False`` says, has a key if the cell draws."""
    checks.check_bool("deterministic", deterministic)
    if not deterministic and key is None and cell.draws:
        want = "a key: the cell draws random numbers"
        raise ValueError(f"key: got None and deterministic=False, want {want}")


def labelled(cell: Cell, made: "Made | None" = None, gated: Any = None) -> Cell:
    """The cell with what it says of itself; its functions alone say nothing."""
    cell = dataclasses.replace(cell)
    object.__setattr__(cell, "made", made)
    object.__setattr__(cell, "gated", gated)
    return cell


def call_of(cell: Cell) -> "Made":
    """The call that made a cell, which is known to come from a constructor."""
    assert cell.made is not None
    return cell.made


class Made(NamedTuple):
    """The call that made a cell, or a constructor."""

    constructor: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        given = [repr_of(value) for value in self.args]
        parameters = inspect.signature(self.constructor).parameters
        for name, value in self.kwargs:
            if name not in parameters or value != parameters[name].default:
                given.append(f"{name}={repr_of(value)}")
        return f"{self.constructor.__name__}({', '.join(given)})"

    def again(self) -> functools.partial[Any]:
        """The call, not yet made: it pickles by the public names of what it is made of."""
        return functools.partial(self.constructor, *self.args, **dict(self.kwargs))


def state_name(k: int) -> str:
    """What the k-th array of a state is called, if nobody says."""
    return f"state_{k}" if k else "h"


def repr_of(value: object) -> str:
    """A function by its name, anything else by its repr."""
    return getattr(value, "__qualname__", None) or repr(value)


_HIDDEN = ("hidden_size", "hidden_dim", "hidden_features", "features", "units", "num_units")
_ELSEWHERE = {  # what layers of other libraries take, and where it is here
    "num_layers": "jaxrnn.stack(cell, ...)",
    "bidirectional": "jaxrnn.bidirectional(cell)",
    "dropout": "jaxrnn.dropout(rate) in a jaxrnn.stack",
    "recurrent_dropout": "jaxrnn.recurrent_dropout(cell, rate)",
    "recurrent_dropout_rate": "jaxrnn.recurrent_dropout(cell, rate)",
    "batch_first": "xs [T, ...batch, I] in jaxrnn.unroll",
    "time_major": "xs [T, ...batch, I] in jaxrnn.unroll",
    "go_backwards": "jaxrnn.unroll(..., reverse=True)",
    "return_sequences": "jaxrnn.unroll, which gives the final state and all outputs",
    "return_state": "jaxrnn.unroll, which gives the final state and all outputs",
    "input_size": "cell.init(key, in_size)",
    "in_features": "cell.init(key, in_size)",
    "key": "cell.init(key, in_size)",
    "rngs": "cell.init(key, in_size)",
}


class constructor(Generic[P]):  # noqa: N801, a decorator
    """Makes a function that builds a ``Cell`` remember its arguments in the cell.

    >>> @jaxrnn.constructor
    ... def smooth(rate=0.5):
    ...     def step(params, state, x):
    ...         state = state + rate * (x - state)
    ...         return state, state
    ...     def initial_state(params, batch_shape):
    ...         return jnp.zeros((*batch_shape, 1))
    ...     return jaxrnn.cell(lambda key, in_size: {}, initial_state, step)
    >>> smooth(0.5) == smooth(), smooth(rate=0.25)
    (True, smooth(rate=0.25))
    """

    build: Callable[P, Cell]
    origin: Made | None
    __name__: str
    __qualname__: str
    __signature__: inspect.Signature

    def __init__(
        self, build: Callable[P, Cell], name: str | None = None, origin: Made | None = None
    ) -> None:
        functools.update_wrapper(self, build)
        self.build = build
        self.__signature__ = inspect.signature(build)
        self.__name__ = name or build.__name__
        self.origin = origin  # what `Made` this constructor, if it was not a `def`

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Cell:
        try:
            bound = self.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.__name__}(): {self._mistake(error, kwargs)}") from None
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            annotation = self.__signature__.parameters[name].annotation
            if annotation is bool:
                checks.check_bool(name, value)
            elif annotation is float:
                checks.number(name, value)
        cell = self.build(*bound.args, **bound.kwargs)
        kinds = self.__signature__.parameters
        several = [n for n, p in kinds.items() if p.kind is p.VAR_POSITIONAL]
        others = [n for n, p in kinds.items() if p.kind is p.VAR_KEYWORD]
        positional = tuple(v for name in several for v in bound.arguments[name])
        named = tuple((n, v) for n, v in bound.arguments.items() if n not in several + others)
        named += tuple(item for name in others for item in sorted(bound.arguments[name].items()))
        made = Made(self, positional, named)
        try:
            hash(made)
        except TypeError as error:
            raise TypeError(f"{made}: a cell's arguments must be hashable: {error}") from None
        return labelled(cell, made, cell.gated)

    def _mistake(self, error: object, kwargs: dict[str, Any]) -> str:
        """What is wrong with a call: a name that it does not know before one that it misses."""
        known = [n for n, p in self.__signature__.parameters.items() if p.kind != p.VAR_POSITIONAL]
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            close = difflib.get_close_matches(unknown[0], known, 1)
            close = [n for n in ("hidden",) if unknown[0] in _HIDDEN and n in known] or close
            want = _ELSEWHERE.get(unknown[0], f"{close[0]}=" if close else "")
            error = f"got an unexpected keyword argument {unknown[0]!r}"
            error += f", want {want}" if want else ""
        return f"{error}; it takes {self._usage()}"

    def _usage(self) -> str:
        """The name with its arguments, without their types."""
        parameters = self.__signature__.parameters.values()
        plain = [p.replace(annotation=p.empty) for p in parameters]
        return f"{self.__name__}{inspect.Signature(plain)}"

    def __repr__(self) -> str:
        return self.__name__

    def __eq__(self, other: object) -> bool:
        if self.origin is None:
            return self is other
        return isinstance(other, constructor) and self.origin == other.origin

    def __hash__(self) -> int:
        return id(self) if self.origin is None else hash(self.origin)

    def __reduce__(self) -> str | tuple[Callable[[], Any], tuple[()]]:
        return self.__qualname__ if self.origin is None else (self.origin.again(), ())


@constructor
def cell(
    init: Init,
    initial_state: InitialState,
    step: Callable[[Params, State, Array], tuple[State, Array]] | StepWithKey,
    *,
    states: tuple[str, ...] = (),
) -> Cell:
    """Lifts a step to a ``Cell``: it gets everything but a fused kernel.

    Args:
      init: ``(key, in_size) -> params``.
      initial_state: ``(params, batch_shape) -> state``.
      step: ``(params, state, x) -> (state, y)``, or ``(params, state, x, key)`` if it draws
        random numbers; the key is the same at every step and None in evaluation.
      states: names of the arrays of its state, in order, for ``jaxrnn.trace``: a tuple.

    Returns:
      The cell. It equals another one made of the same three functions and names.

    >>> mean = jaxrnn.cell(
    ...     init=lambda key, in_size: {},
    ...     initial_state=lambda params, batch_shape: (jnp.zeros(batch_shape), 0.0),
    ...     step=lambda params, state, x: ((state[0] + x[..., 0], state[1] + 1.0),
    ...                                    (state[0] + x[..., 0])[..., None] / (state[1] + 1.0)),
    ... )
    >>> state, ys = jaxrnn.unroll(mean, {}, jnp.array([[2.0], [4.0], [6.0]]))
    >>> ys[:, 0]
    Array([2., 3., 4.], dtype=float32)
    """
    takes_key = "key" in inspect.signature(step).parameters

    def call(params, state, x, key):
        given = (params, state, x, key) if takes_key else (params, state, x)
        result = step(*given)
        checks.check_result(result, state)
        return result

    def one(params, state, x, key=None):
        state = checks.completed_state(initial_state, params, state, inputs.leading(x))
        return call(params, state, x, key)

    def whole(params, state, xs, options, initial=None, every=False):
        checks.check_lifted(options.implementation)
        dispatch.record_reference("scan of step", "only gated cells have one")
        initial = initial_state(params, inputs.leading(xs)[1:]) if initial is None else initial
        return every_step.scanned(call, params, state, xs, options, initial, every)

    unroll = once(whole, "every")
    return Cell(init, initial_state, one, unroll, takes_key, states)


def unroll(
    cell: Cell,
    params: Params,
    xs: Inputs,
    state: State | None = None,
    *,
    lengths: InputArray | Sequence[int] | None = None,
    mask: InputArray | None = None,
    starts: InputArray | None = None,
    segment_ids: InputArray | None = None,
    reverse: bool = False,
    key: PRNGKey | None = None,
    deterministic: bool | None = None,
    time_axis: str | None = None,
    return_states: bool = False,
    implementation: ImplementationName | None = None,
) -> tuple[State, Outputs]:
    """Runs a cell over a sequence: the same as scanning ``cell.step``.

    Args:
      cell: a ``Cell``.
      params: from ``cell.init``, in any mapping.
      xs: floating [T, ...batch, I]; for a cell that reads tokens, integers [T, ...batch]; for one
        that reads several inputs, a dict of such arrays.
      state: the state before the first step processed; None for the initial state.
      lengths: int [...batch]: the first ``lengths`` steps are real, the rest is padding. Lengths
        below 0 or beyond T are an error where they are known. Inside ``jax.jit`` they are not: a
        row then has no real step, or T of them.
      mask: bool [T, ...batch], true at a real step: padding anywhere. With ``lengths``, a step is
        real if both say so. Whatever stands in padding, NaN included, changes nothing.
      starts: bool [T, ...batch], true where a new episode begins before this step: no state
        crosses from the step before, whichever way the sequence is run.
      segment_ids: int [T, ...batch], of packed rows, as ``jaxrnn.pack`` makes them: 0 for padding,
        another number for the steps of each segment. They are ``mask`` and ``starts`` in one, see
        ``jaxrnn.from_segment_ids``. Each segment begins with the initial state, so neither
        ``state`` nor ``starts`` is given beside them. With ``lengths`` or ``mask``, a step is real
        if all say so.
      reverse: runs from the last step to the first. ``ys[t]`` still belongs to ``xs[t]``.
      key: a ``jax.random`` key for cells that draw random numbers; None is evaluation.
      deterministic: says which is meant: False is training, for which a cell that draws has to be
        given a key; True is evaluation, whatever the key; None leaves it to the key.
      time_axis: the name of a mesh axis that time is divided over, or None; as for
        ``jaxrnn.linear_scan``, for linear recurrences (``lru``, ``rg_lru``, ``mamba``, ``qrnn``,
        ``rwkv4``), matrix memories (``mlstm``, ``gla``, ``mamba3``, ``delta_net`` and the like),
        ``attention``, ``conv1d``, and layers that see one step at a time, in ``stack``,
        ``bidirectional`` and others. ``lengths`` are those of the whole sequences. Other cells
        refuse; one made by hand with a loop of its own cannot be seen, and must not be given.
      return_states: whether to return the states after all steps too, with a gradient. Cells made
        by ``gated``, ``jaxrnn.cell``, and wrappers of them make them on the way, those of
        ``gated`` in the kernel. Of others the step is scanned; ``explain`` says so.
      implementation: a name ("reference", "xla", "cpu", "tpu", "gpu"), or None for the best that
        can run; or "newton", which is never chosen: see ``jaxrnn.newton``.

    Returns:
      ``(state, ys)`` as ``jax.lax.scan``: the state after the last step processed, and the
      outputs [T, ...batch, O] in the type of ``xs``, zero where a step is not real. With
      ``return_states``, ``(state, (ys, states))``: states have the structure of ``state``, with
      time before all other axes; at a step that is not real, a state is held.

    Raises:
      ValueError, TypeError: at trace time, naming the argument, what came and what is wanted.

    >>> cell = jaxrnn.gru(hidden=8)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> state, ys = jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)), lengths=jnp.array([5, 1]))
    >>> ys.shape, bool((ys[1:, 1] == 0).all())
    ((5, 2, 8), True)
    >>> lstm = jaxrnn.lstm(hidden=8)
    >>> params, xs = lstm.init(jax.random.key(0), 3), jnp.ones((5, 2, 3))
    >>> state, (ys, (h, c)) = jaxrnn.unroll(lstm, params, xs, return_states=True)
    >>> c.shape, bool((c[-1] == state[1]).all())
    ((5, 2, 8), True)
    """
    check_cell("cell", cell)
    checks.check_bool("return_states", return_states)
    checks.check_sequence(params, xs, mask, starts, segment_ids, reverse, key, implementation)
    checks.check_segments(segment_ids, state, starts)
    params = dicts(params)
    if deterministic is not None:
        check_deterministic(cell, deterministic, key)
        key = None if deterministic else key
    xs = jax.tree.map(jnp.asarray, xs)  # NumPy's float64 is float32 here, unless JAX has it
    if time_axis is not None and lengths is not None:
        lengths = own_lengths(time_axis, jnp.asarray(lengths), inputs.leading(xs)[0])
    mask = checks.combined_mask(xs, lengths, mask)
    if segment_ids is not None:
        segment_ids = jnp.asarray(segment_ids)
        mask = segment_ids != 0 if mask is None else mask & (segment_ids != 0)
    starts = None if starts is None else jnp.asarray(starts)
    options = Options(mask, starts, reverse, key, implementation)
    batch = inputs.leading(xs)[1:]
    if state is not None:
        state = checks.completed_state(
            cell.initial_state, params, state, batch, inputs.swapped(xs)
        )
    xs = select(options.mask, xs, 0)  # what stands in padding never meets a weight

    def run(params, state, xs, options, segment_ids):
        if segment_ids is not None:
            options = options.replace(starts=segment_starts(segment_ids))
        return every_step.run(cell, params, state, xs, options, every=return_states)

    if time_axis is not None:

        def stretch(timed, others):
            (xs, mask, starts, ids), (params, state, options) = timed, others
            # Else a gradient would be summed over devices before it is summed over time.
            params, xs = varying((params, xs))
            with divided(time_axis):
                return run(params, state, xs, options.replace(mask=mask, starts=starts), ids)

        timed = xs, options.mask, options.starts, segment_ids
        others = params, state, options.replace(mask=None, starts=None)
        return mapped(stretch, time_axis, timed, others)
    features = jax.tree.leaves(xs)[0].ndim - 1 - len(batch)
    run = automatic(run, jax.tree.leaves(xs)[0], features)
    return run(params, state, xs, options, segment_ids)


def explain(
    cell: Cell,
    params: Params,
    xs: Inputs,
    state: State | None = None,
    *,
    platform: str | Device | None = None,
    **options: Any,  # those of `unroll`
) -> dispatch.Explanation:
    """Says which implementation ``unroll`` runs on, and why the others don't.

    Args:
      cell, params, xs, state, options: as for ``unroll``; nothing is computed, so ``params`` and
        ``xs`` may be ``jax.ShapeDtypeStruct``. With ``implementation="newton"`` and arrays, it is
        computed how many iterations these take.
      platform: "cpu", "gpu" or "tpu"; a ``jax.Device``, whose chip then counts too; None for JAX's
        default device.

    Returns:
      An ``Explanation``, which prints as a table.

    >>> cell = jaxrnn.lstm(hidden=8)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> print(jaxrnn.explain(cell, params, jnp.ones((5, 2, 3)), platform="tpu"))
    lstm(hidden=8) on tpu
      lstm_update T=5 B=(2,) I=3 H=8 float32
        gates i f g o, states h c
        tpu        runs
        cpu        no: it is for CPUs, not for tpu
        gpu        no: it is for NVIDIA GPUs, not for tpu
        xla        no: tpu is faster
        reference  no: the specification: runs when it is asked for
    """
    target = checks.target(platform)
    with dispatch.recording(target) as choices:
        arrays = (dicts(params), xs, state, {k: v for k, v in options.items() if _is_array(v)})
        static = {k: v for k, v in options.items() if not _is_array(v)}

        def run(params, xs, state, arrays):
            unroll(cell, params, xs, state, **arrays, **static)
            return [choice.solved for choice in choices]

        types = any(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(arrays))
        if options.get("implementation") == dispatch.NEWTON and not types:
            solved = jax.jit(run)(*arrays)
        else:
            jax.eval_shape(run, *arrays)
            solved = [None] * len(choices)
    choices = [choice.told(found) for choice, found in zip(choices, solved, strict=True)]
    return dispatch.Explanation(repr(cell), target.chip or str(target.platform), tuple(choices))


def _is_array(value: object) -> bool:
    return hasattr(value, "shape")


def output_size(cell: Cell, params: Params, in_size: int) -> int:
    """The size of a cell's output, with parameters for inputs of ``in_size`` features."""

    def run(xs):
        return cell.unroll(params, None, xs, Options())[1]

    ys = jax.eval_shape(run, jax.eval_shape(lambda: inputs.example(in_size)))
    checks.check_one_output(cell, ys)
    return ys.shape[-1]
