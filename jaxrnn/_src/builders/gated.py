"""From an elementwise update to a cell."""

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxrnn._src.builders import step_inputs
from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, linear, param_spec
from jaxrnn._src.core.cell import Cell, Made, constructor, labelled, state_name
from jaxrnn._src.core.closures import units
from jaxrnn._src.core.dtypes import arithmetic
from jaxrnn._src.core.gathered import gathered
from jaxrnn._src.core.inputs import leading
from jaxrnn._src.core.streaming import streamed
from jaxrnn._src.core.tags import untagged
from jaxrnn._src.core.typing import Array, Initializer, Residuals, State, Update
from jaxrnn._src.ops.recurrence import RESIDUALS, recur, reference
from jaxrnn._src.ops.recurrence.elements import Mixed, Nodes, Unknown, every_equation, follow, held
from jaxrnn._src.ops.recurrence.packed import Packing
from jaxrnn._src.ops.recurrence.problem import Operands, Problem, spread


def gated(
    update: Update,
    *,
    gates: int | Sequence[str],
    states: int | Sequence[str] = 1,
    bias: Sequence[float] | None = None,
    unit: Mapping[str, Initializer] | None = None,
    recurrent: Sequence[str | int] | None = None,
    inputs: Sequence[str] = (),
) -> "Gated":
    """Makes the constructor of a cell from its elementwise update.

        x[k] = xs @ w[:, k] + b[k]      r[k] = h @ r[:, k]      for each gate k
        state = update(state, x, r)

    The cell gets scan, masks, episode resets, every JAX transform, Flax modules, a benchmark row
    and every fused implementation.

    Args:
      update: ``update(state, x, r, **unit) -> state``. ``state`` is a tuple of arrays [..., H],
        the first of which is the output and what recurs; ``x`` and ``r`` are tuples of an array
        [..., H] for each gate. Elementwise over H, and its name ends in ``_update``.
      gates: the names of the gates it takes, in order, such as ``("i", "f", "g", "o")``; or how
        many there are.
      states: the names of the arrays of its state, such as ``("h", "c")``, or how many there are;
        they begin at zero. ``jaxrnn.trace`` and errors use these names.
      bias: what the bias of each gate begins at, a number for each; zeros if None.
      unit: further weights, one number for each hidden unit: a dict from the argument's name in
        ``update`` to an initializer ``(key, shape, dtype) -> array`` of shape [H].
      recurrent: the gates that have a recurrent part, if not all have: their names or numbers, in
        the order in which ``update`` takes them as ``r``. Kernels take a product with zeros for
        the others. ``()`` says that no unit sees another but through the update: ``r`` is empty,
        XLA's loop runs the cell as one of ``jaxrnn.lifted``, and it takes no ``heads``,
        ``residuals`` or ``inputs``. ``jaxrnn.newton`` and ``jaxrnn.online`` then have one small
        Jacobian for each unit.
      inputs: names of what each step is given that no weight multiplies, such as ``("dt",)`` for
        the time since the step before. The update takes them by name, [..., H]. The cell's input
        is then a dict, of ``x`` [..., I] and each of them, [..., 1]. On a kernel each costs as
        much as a gate.

    Returns:
      A constructor ``(hidden, *, heads=1, residuals="gates") -> Cell``. With ``heads`` = N the
      recurrence is block-diagonal: unit i sees only the H / N units of its own head.
      ``residuals`` is what a forward keeps for its backward: "gates", all that enters them;
      "states", [T, ...batch, H] each, from which the gates are made again; or "chunks", a state
      every sqrt(T) steps or so, and the steps between are run again: long sequences in small
      memory.

      The cell's parameters are ``{"w": [I, G, H], "r": [H, G, H], "b": [G, H]}`` and one [H] for
      each name in ``unit``; with N heads of width D, ``r`` is [N, D, G, D]. ``r`` has only the
      gates that are ``recurrent``, and is not there if none is.

    Raises:
      TypeError: ``update`` is not elementwise, or does not take or give what it should.

    An update may tag what is worth seeing by ``jax.ad_checkpoint.checkpoint_name``: see
    ``jaxrnn.trace``. Tags are removed before a kernel sees it.

    An update may take further options by name, which have defaults. Of these,
    ``jaxrnn.recurrent_dropout`` gives ``drop``: a function of the candidate for the new state.

    >>> def mgu_update(state, x, r):
    ...     (h,), (xf, xn), (rf, rn) = state, x, r
    ...     f = jax.nn.sigmoid(xf + rf)
    ...     return (h + f * (jnp.tanh(xn + f * rn) - h),)
    >>> mgu = jaxrnn.gated(mgu_update, gates=("f", "n"))
    >>> mgu(hidden=16)
    mgu(hidden=16)

    The hidden state of a GRU-D decays between observations (Che et al. 2018, arXiv:1606.01865):

    >>> def decaying_update(state, x, r, dt, rate):
    ...     (h,), (xz, xn), (rz, rn) = state, x, r
    ...     h, z = jnp.exp(-jax.nn.softplus(rate) * dt) * h, jax.nn.sigmoid(xz + rz)
    ...     return (h + z * (jnp.tanh(xn + rn) - h),)
    >>> decaying = jaxrnn.gated(
    ...     decaying_update, gates=("z", "n"), inputs=("dt",),
    ...     unit={"rate": jax.nn.initializers.zeros},
    ... )
    >>> cell = decaying(hidden=16)
    >>> params = cell.init(jax.random.key(0), {"x": 3, "dt": 1})
    >>> xs = {"x": jnp.ones((5, 2, 3)), "dt": jnp.full((5, 2, 1), 0.5)}
    >>> jaxrnn.unroll(cell, params, xs)[1].shape
    (5, 2, 16)
    """
    if not callable(update):
        raise TypeError(f"update: got {checks.described(update)}, want a function")
    gates = checks.names("gates", gates, str)
    states = checks.names("states", states, state_name)
    bias = (0.0,) * len(gates) if bias is None else tuple(float(b) for b in bias)
    if len(bias) != len(gates):
        want = f"one for each of {len(gates)} gates: {', '.join(gates)}"
        raise ValueError(f"bias: got {len(bias)} numbers, want {want}")
    named = tuple(sorted(dict(unit or {}).items()))
    given = step_inputs.names(inputs, dict(named), gates)
    form = Form(update, gates, states, bias, named, _recurrent(gates, recurrent), given)
    if not form.recurrent and given:
        raise ValueError(f"inputs: got {given}, want none, as no gate is recurrent")
    size = _check_update(form)

    def build(hidden: int, *, heads: int = 1, residuals: Residuals = "gates") -> Cell:
        if size is not None and hidden != size:
            why = f"update {update.__name__} closes over an array of so many units"
            raise ValueError(f"hidden: got {hidden}, want {size}: {why}")
        if not form.recurrent:
            return _without_products(form, hidden, heads, residuals)
        return _build(form, hidden, heads, residuals)

    name = update.__name__.removesuffix("_update")
    _, *options = zip(form._fields, form)
    made = constructor(build, name, Made(gated, (form.update,), tuple(options)))
    made.__doc__ = update.__doc__
    return made


class Gated(Protocol):
    """A ``constructor`` that ``gated`` made."""

    def __call__(self, hidden: int, *, heads: int = 1, residuals: Residuals = "gates") -> Cell: ...


def _recurrent(gates: tuple[str, ...], recurrent: Sequence[str | int] | None) -> tuple[int, ...]:
    """The numbers of the gates that have a recurrent part, from their names or numbers."""
    if recurrent is None:
        return tuple(range(len(gates)))
    found: tuple[Any, ...] = tuple(gates.index(k) if k in gates else k for k in recurrent)
    if not set(found) <= set(range(len(gates))) or len(set(found)) < len(found):
        want = f"different gates of {', '.join(gates)}"
        raise ValueError(f"recurrent: got {tuple(recurrent)}, want {want}")
    return found


class Form(NamedTuple):
    """What ``gated`` was called with."""

    update: Update
    gates: tuple[str, ...]
    states: tuple[str, ...]
    bias: tuple[float, ...]
    unit: tuple[tuple[str, Initializer], ...]
    recurrent: tuple[int, ...]
    inputs: tuple[str, ...] = ()

    def filled(self, r: Array) -> Array:
        """The recurrent weights of all gates and inputs: zero for one that has none."""
        if self.whole:
            return r
        zero = jnp.zeros_like(r[..., 0, :])
        parts = {k: r[..., i, :] for i, k in enumerate(self.recurrent)}
        return jnp.stack([parts.get(k, zero) for k in range(self.count)], -2)

    @property
    def count(self) -> int:
        """How many gates a kernel sees: those of the inputs come last."""
        return len(self.gates) + len(self.inputs)

    @property
    def whole(self) -> bool:
        return self.recurrent == tuple(range(self.count))

    @property
    def summed(self) -> tuple[int, ...]:
        """The gates whose two parts the update sees only as a sum, or that have but one."""
        update = untagged(_update(self))
        problem = Problem(update, self.count, len(self.states), False, "gates", None)
        return Packing(problem, (name for name, _ in self.unit)).summed


class Parts(NamedTuple):
    """What a cell made by ``gated`` shows of itself, for others to change.

    ``step(params, state, x, h=None, around=None, **options) -> (state, y)`` is a step whose
    products take ``h`` in place of the state, and whose update is ``around(update)``, if given,
    called with ``options``. ``gates(params, state, x)`` is what ``update(state, x, r, **unit)`` is
    given beside the state: ``(x, r, unit)``.
    """

    form: Form
    step: Callable[..., tuple[State, Array]]
    gates: Callable[..., tuple[tuple[Array, ...], tuple[Array, ...], dict[str, Array]]]
    update: Update


def _update(form: Form) -> Update:
    """The update as ``recur`` calls it, with recurrent parts of all gates, and inputs as gates.

    The same function for the same form, as long as something uses it.
    """
    if form.whole:
        return form.update
    if form in _updates:
        return _updates[form]

    @functools.wraps(form.update)
    def update(state, x, r, **unit):
        # Zero, but so the kernels see a sum, and keep one array for both.
        x = tuple(a if k in form.recurrent else a + r[k] for k, a in enumerate(x))
        count = len(form.gates)
        unit |= dict(zip(form.inputs, x[count:], strict=True))
        return form.update(state, x[:count], tuple(r[k] for k in form.recurrent), **unit)

    _updates[form] = update
    return update


_updates = weakref.WeakValueDictionary()


def _build(form: Form, hidden: int, heads: int, residuals: Residuals) -> Cell:
    hidden, heads = checks.heads(hidden, heads)
    if residuals not in RESIDUALS:
        raise ValueError(f"residuals: got {residuals!r}, want one of {RESIDUALS}")
    gates, update = form.count, _update(form)
    spec = param_spec.gated(hidden, len(form.gates), heads, len(form.recurrent), form.bias)
    spec |= {name: ((hidden,), init) for name, init in form.unit}

    def initial_state(params, batch_shape):
        zeros = jnp.zeros((*batch_shape, hidden), arithmetic(params))
        return (zeros,) * len(form.states)

    def operands(params, state, xs):
        param_spec.check(spec, params, step_inputs.features(form.inputs, xs, "xs"))
        unit = {name: params[name] for name, _ in form.unit}
        given = xs, params["w"], params["b"]
        if form.inputs:
            given = step_inputs.joined(form.inputs, params, xs)
        return Operands(*given, form.filled(params["r"]), unit, state, None, None, None)

    def typed(ys, xs):
        """Outputs in the type of the features, which what is joined to them may widen."""
        return ys.astype(step_inputs.features(form.inputs, xs, "xs").dtype)

    def changed(params, state, x, h=None, around=None, **options):
        given = functools.partial(around(update) if around else update, **options)
        problem = Problem(given, gates, len(form.states), False, residuals, None)
        given = operands(params, state, x)
        state, y = reference.step(problem, given, state, given.xs, h)
        return state, typed(y, x)

    def given_gates(params, state, x):
        given = operands(params, state, x)
        return reference.given(given, state, given.xs, state[0])

    def step(params, state, x, key=None):
        del key
        state = checks.completed_state(initial_state, params, state, leading(x))
        return changed(params, state, x)

    def unroll(params, state, xs, options, initial=None, every=False):
        params = gathered(params)
        initial = initial_state(params, leading(xs)[1:]) if initial is None else initial
        state = initial if state is None else state
        given = operands(params, state, xs)
        state, ys = recur(
            update,
            given.xs,
            given.w,
            given.b,
            given.r,
            given.unit,
            given.state,
            initial=None if options.starts is None else initial,
            mask=options.mask,
            starts=options.starts,
            reverse=options.reverse,
            residuals=residuals,
            implementation=options.implementation,
            every=every,
        )
        return state, (typed(ys[0], xs), ys[1]) if every else typed(ys, xs)

    def init(key, in_size):
        return param_spec.made(spec, key, step_inputs.sized(form.inputs, in_size))

    # What implementations make is theirs.
    whole = streamed(unroll, initial_state, lambda params, xs: ())
    cell = Cell(init, initial_state, step, whole, states=form.states)
    return labelled(cell, gated=Parts(form, changed, given_gates, update))


def _without_products(form: Form, hidden: int, heads: int, residuals: Residuals) -> Cell:
    """A cell whose units do not see each other: there is no product, and nothing else to do."""
    hidden = checks.size("hidden", hidden)
    for name, value, only in (("heads", heads, 1), ("residuals", residuals, "gates")):
        if value != only:
            raise ValueError(f"{name}: got {value!r}, want {only!r}, as no gate is recurrent")
    spec = param_spec.feedforward(hidden, len(form.gates), form.bias)
    spec |= {name: ((hidden,), init) for name, init in form.unit}

    widths, names = dict.fromkeys(form.states, hidden), tuple(name for name, _ in form.unit)

    def made(update):
        @functools.wraps(form.update)
        def step(others, state, x, dot):
            del dot
            new = update(state, x, (), **others)
            return new, new[0]

        return lifted(spec, widths, linear.gates, step, others=names)

    def changed(params, state, x, h=None, around=None, **options):
        del h  # there is no product to take it
        update = around(form.update) if around else form.update
        return made(functools.partial(update, **options)).step(params, state, x)

    def given_gates(params, state, x):
        unit = {name: spread(params[name], state[0]) for name in names}
        gates = (a.astype(state[0].dtype) for a in linear.gates(params, x))
        return tuple(gates), (), unit

    cell = made(form.update)
    return labelled(cell, gated=Parts(form, changed, given_gates, form.update))


_MIXING = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "rev", "sort", "dot_general"}
_MOVING = {"gather", "scatter", "scatter-add", "dynamic_update_slice", "pad"}


def _check_update(form: Form) -> int | None:
    """Traces ``update`` on rows of an odd size and looks for anything that is not elementwise.

    An update that closes over arrays of H units is traced on rows of that size, which is returned;
    None is returned for any other.
    """
    update, gates, states = form.update, len(form.gates), len(form.states)
    unit = (*(name for name, _ in form.unit), *form.inputs)
    size = units(update, (states, gates, len(form.recurrent)), unit)
    row = jax.ShapeDtypeStruct((size or 3,), jnp.float32)
    name = f"update {update.__name__}"
    try:
        inspect.signature(update).bind(None, None, None, **dict.fromkeys(unit))
    except TypeError as error:
        raise TypeError(f"{name}: {error}; it is called with (state, x, r) and {unit}") from None
    rows = lambda count: (row,) * count
    named = dict.fromkeys(unit, row)
    try:
        jaxpr, out = jax.make_jaxpr(update, return_shape=True)(
            rows(states), rows(gates), rows(len(form.recurrent)), **named
        )
    except Exception as error:
        error.add_note(f"in {name}, called with states={form.states} and gates={form.gates}")
        raise
    shapes = [o.shape for o in out] if isinstance(out, tuple) else type(out).__name__
    if shapes != [row.shape] * states:
        want = f"a tuple of {states} arrays like its inputs: {', '.join(form.states)}"
        raise TypeError(f"{name}: gave {shapes}, want {want}")
    try:
        follow(jaxpr, Nodes(size))
        mixing = None
    except Mixed as mixed:
        mixing = _mixing(jaxpr, row) or str(mixed)
    except Unknown:
        mixing = _mixing(jaxpr, row)
    if mixing:
        raise TypeError(
            f"{name}: {mixing} is not elementwise over the hidden axis;"
            f" lift the cell from its step with jaxrnn.cell instead"
        )
    return size


def _mixing(jaxpr, row):
    """The first operation that is not elementwise, as far as its name and its shapes say."""
    for eqn in every_equation(jaxpr):
        if held(eqn):  # what it holds is looked at
            continue
        # What is made of rows are rows: a smaller array is a sum over them, or a part of them.
        rows = [v.aval.shape[-1:] == row.shape for v in eqn.invars]
        made = any(rows) and any(v.aval.shape[-1:] != row.shape for v in eqn.outvars)
        of_a_row = eqn.invars and eqn.invars[0].aval.shape == row.shape
        if made or eqn.primitive.name in _MIXING | (_MOVING if of_a_row else set()):
            return eqn.primitive.name
    return None
