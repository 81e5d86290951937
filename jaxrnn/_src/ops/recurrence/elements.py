"""A function of rows followed through its jaxpr, one number at a time.

Calls are inlined, and a loop whose count is known is unrolled. Arrays beside the units, as what a
scan stacks up, are taken apart. What is left are operations on the numbers of one unit.
"""

import dataclasses
import functools
import math

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

MOST = 2048  # operations that loops may come to: whoever follows them runs them all, in a line


class Unknown(Exception):
    """The function has an operation that cannot be followed; its name is the message."""


class Mixed(Unknown):
    """An operation gives one unit's number to another; its name is the message."""


class Nodes:
    """What numbers are made of: operations and their arguments, none of them twice.

    Attributes:
      units: of so many units are the arrays that a function closes over and that are traced; None
        if each of them is of all units.
    """

    def __init__(self, units=None):
        self.nodes, self.known, self.units = [], {}, units

    def closed_over(self, const, aval):
        """The numbers of a traced array that a function closes over."""
        own = aval.shape == (self.units,)
        numbers = [
            Number(self.node("closed over", id(const), i), i if own else None)
            for i in range(math.prod(aval.shape))
        ]
        return _filled(aval.shape, numbers)

    def node(self, *key):
        if key not in self.known:
            self.known[key] = len(self.nodes)
            self.nodes.append(key)
        return self.known[key]

    def constant(self, value):
        return self.node("constant", float(value).hex())  # tells -0.0 from 0.0, and finds NaN

    def value(self, node):
        """The number a node is, None if it is not constant."""
        operation, *args = self.nodes[node]
        return float.fromhex(args[0]) if operation == "constant" else None

    def operate(self, name, eqn, args):
        """The node of an operation, one of ``ELEMENTWISE``, with an equation's parameters."""
        return self.node(name, id(eqn), *args)


def follow(closed, nodes):
    """What an elementwise function makes of its arguments, rows of units.

    Args:
      closed: its jaxpr, traced on rows of a few units.
      nodes: ``Nodes``, to which the inputs and all that is made of them are added.

    Returns:
      The node of each result, of any unit.

    Raises:
      Mixed: the function is not elementwise.
      Unknown: there is something in it that cannot be followed.
    """
    rows = []
    for i, aval in enumerate(closed.in_avals):
        units = range(*aval.shape)
        rows.append(_filled(aval.shape, [Number(nodes.node("input", i), u) for u in units]))
    followed = _Followed(nodes)
    return [followed.of_any_unit(a) for a in followed.jaxpr(closed, rows)]


def of_any_size(trace):
    """Checks that a function computes the same of a row of any size.

    Args:
      trace: ``size -> jaxpr``, of rows of so many units.

    Raises:
      Unknown: it does not, as one that divides by the size.
    """
    found = []
    for size in (3, 5):
        nodes = _Alike()
        found.append((follow(trace(size), nodes), nodes.nodes))
    if found[0] != found[1]:
        raise Unknown("a number that depends on how many units there are")


class _Alike(Nodes):
    """Two equations of the same parameters are the same operation; jaxprs have sizes in them."""

    def operate(self, name, eqn, args):
        return self.node(name, "" if held(eqn) else str(eqn.params), *args)


def called(eqn, rules=True):
    """The jaxpr that an equation does nothing but call, or None.

    Args:
      rules: whether also one whose derivative has a rule of its own.
    """
    name = eqn.primitive.name
    key = _CALLS.get(name) or (rules and _CALLS_WITH_RULES.get(name))
    return eqn.params[key] if key else None


def held(eqn):
    """The jaxprs among an equation's parameters: a call's, a loop's, those of branches."""
    values = [v if isinstance(v, (tuple, list)) else (v,) for v in eqn.params.values()]
    return [v for some in values for v in some if hasattr(v, "jaxpr") or hasattr(v, "eqns")]


def every_equation(jaxpr):
    """Those of a jaxpr, and of all that these hold."""
    for eqn in opened(jaxpr)[0].eqns:
        yield eqn
        for inner in held(eqn):
            yield from every_equation(inner)


def said(error):
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def opened(jaxpr):
    """A jaxpr, and the values of its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


@dataclasses.dataclass(frozen=True)
class Number:
    """An element of an array that is not known before the program runs."""

    node: int
    unit: int | None  # whose it is; None if it is every unit's


class _Followed:
    """Arrays are NumPy's: of numbers that are known, or of objects where some is a ``Number``."""

    def __init__(self, nodes):
        self.nodes = nodes
        self.loops, self.unrolled = [], 0  # those we are in, and what all of them came to

    def jaxpr(self, jaxpr, args):
        jaxpr, consts = opened(jaxpr)
        env = dict(zip(jaxpr.invars, args, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            traced = isinstance(const, jax.core.Tracer)
            take = self.nodes.closed_over if traced else _known
            env[var] = take(const, var.aval)

        def read(atom):
            return _known(atom.val, atom.aval) if hasattr(atom, "val") else env[atom]

        for eqn in jaxpr.eqns:
            out = self.equation(eqn, [read(a) for a in eqn.invars])
            settled = [_settled(a, v.aval) for a, v in zip(out, eqn.outvars, strict=True)]
            env |= zip(eqn.outvars, settled, strict=True)
        return [read(a) for a in jaxpr.outvars]

    def equation(self, eqn, args):
        name = eqn.primitive.name
        self.count()
        if _is_exp_neg_sq(eqn):
            return [self.elementwise("exp_neg_sq", eqn, args)]
        inner = called(eqn)
        if inner is not None:
            return self.jaxpr(inner, args)
        if name in _LOOPS:
            self.loops.append(name)
            out = _LOOPS[name](self, eqn.params, args)
            self.loops.pop()
            return out
        if name == "cond":
            return self.cond(eqn.params, args)
        if name in SAME:
            return args
        if name in MOVES:
            moved = MOVES[name](eqn, *args)
            return moved if isinstance(moved, list) else [moved]
        if name in _REDUCTIONS:
            return [self.reduced(eqn, *args)]
        return [self.elementwise(name, eqn, args)]

    def count(self):
        if self.loops:
            self.unrolled += 1
        if self.unrolled > MOST:
            raise Unknown(f"a {self.loops[0]} that comes to more than {MOST} operations")

    def scan(self, params, args):
        first, last = scan_ends(params)
        consts, carry, xs = args[:first], args[first:last], args[last:]
        count = last - first
        ys = []
        for i in range(params["length"])[:: -1 if params["reverse"] else 1]:
            self.count()
            out = self.jaxpr(params["jaxpr"], [*consts, *carry, *(_part(x, i) for x in xs)])
            carry = out[:count]
            ys.append(out[count:])
        ys = ys[:: -1 if params["reverse"] else 1]
        avals = opened(params["jaxpr"])[0].outvars[count:]
        if not ys:
            return [*carry, *(np.zeros((0, *v.aval.shape), v.aval.dtype) for v in avals)]
        return [*carry, *map(np.stack, zip(*ys))]

    def repeat(self, params, args):
        """A while loop, whose count is known if its condition is."""
        first = params["cond_nconsts"]
        last = first + params["body_nconsts"]
        for_test, for_body, carry = args[:first], args[first:last], args[last:]
        while True:
            self.count()
            (more,) = self.jaxpr(params["cond_jaxpr"], [*for_test, *carry])
            if more.dtype == object:
                raise Unknown("while")
            if not more:
                return carry
            carry = self.jaxpr(params["body_jaxpr"], [*for_body, *carry])

    def cond(self, params, args):
        which, *args = args
        if which.dtype == object:
            raise Unknown("cond")
        branches = params["branches"]
        return self.jaxpr(branches[np.clip(which, 0, len(branches) - 1)], args)

    def reduced(self, eqn, array):
        """Joins the parts along other axes than the units'."""
        axes = tuple(eqn.params["axes"])
        parts = np.moveaxis(array, axes, range(len(axes)))
        parts = list(parts.reshape(-1, *eqn.outvars[0].aval.shape))
        if not parts and eqn.primitive.name == "reduce_sum":
            return np.zeros(eqn.outvars[0].aval.shape, array.dtype)
        if not parts:
            raise Unknown(f"{eqn.primitive.name} of nothing")
        join = functools.partial(self.elementwise, _REDUCTIONS[eqn.primitive.name], eqn)
        return functools.reduce(lambda a, b: join([_array(a), _array(b)]), parts)

    def elementwise(self, name, eqn, args):
        aval, *others = (v.aval for v in eqn.outvars)
        if name not in ELEMENTWISE or others:
            raise Unknown(name)
        if all(a.dtype != object for a in args):
            found = computed(name, eqn, args)
            if found is not None:
                return found
        flat = [np.broadcast_to(a, aval.shape).ravel().astype(object) for a in args]
        return _filled(aval.shape, [self.element(name, eqn, e) for e in zip(*flat)])

    def element(self, name, eqn, elements):
        if name == "select_n" and not isinstance(elements[0], Number):
            return elements[1 + min(max(int(elements[0]), 0), len(elements) - 2)]
        units = {e.unit for e in elements if isinstance(e, Number)} - {None}
        if len(units) > 1:
            raise Mixed(eqn.primitive.name)
        nodes = [self.node(e) for e in elements]
        return Number(self.nodes.operate(name, eqn, nodes), units.pop() if units else None)

    def node(self, element):
        return element.node if isinstance(element, Number) else self.nodes.constant(element)

    def of_any_unit(self, array):
        found = set()
        for unit, element in enumerate(array.astype(object)):
            if isinstance(element, Number) and element.unit not in (None, unit):
                raise Mixed("a result of another unit")
            found.add(self.node(element))
        if len(found) > 1:
            raise Unknown("an array that differs between units, but is no unit weight")
        return found.pop()


def scan_ends(params):
    """Where the constants of a scan end among its arguments, and where its carry."""
    if "num_consts" in params:
        return params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # since JAX 0.12
    return len(consts), len(consts) + len(carry)


def _known(value, aval):
    try:
        return np.asarray(value, aval.dtype)
    except Exception:  # a tracer, or a type without numbers
        raise Unknown("a closed-over value that is not known yet") from None


def _filled(shape, elements):
    """An array of objects."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def _array(element):
    """What NumPy gives of an array of no axes may be no array."""
    return element if isinstance(element, np.ndarray) else _filled((), [element])


def _part(array, i):
    return array[i : i + 1].reshape(array.shape[1:])


def _settled(array, aval):
    """An array in its own type again if all of it is known."""
    if array.dtype != object or any(isinstance(e, Number) for e in array.flat):
        return array
    return array.astype(aval.dtype)


def _is_exp_neg_sq(eqn):
    """Erf's derivative, since JAX 0.12 a function of JAX's that works on bits."""
    inner = eqn.params.get("call_jaxpr")
    info = getattr(opened(inner)[0], "debug_info", None)
    source = getattr(info, "func_src_info", None) or ""
    return source.startswith("exp_neg_sq at ") and "jax/_src/lax/erf.py" in source


# What only calls a jaxpr, and its parameter: by name, for what else holds a jaxpr does more.
_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",  # until JAX 0.11
    "call": "call_jaxpr",  # the same
    "eval_jaxpr": "call_jaxpr",  # since JAX 0.12
    "remat2": "jaxpr",  # jax.checkpoint
    "xla_metadata_call": "jaxpr",  # since JAX 0.12
}
_CALLS_WITH_RULES = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
    "composite": "jaxpr",
}
CALLS = _CALLS | _CALLS_WITH_RULES
_LOOPS = {"scan": _Followed.scan, "while": _Followed.repeat}
SAME = {"copy", "copy_p", "stop_gradient", "optimization_barrier", "name"}
_REDUCTIONS = {
    "reduce_sum": "add",
    "reduce_prod": "mul",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_and": "and",
    "reduce_or": "or",
}
_OF_LAX = """
    neg sign nextafter floor ceil round is_finite exp exp2 log log2 expm1 log1p tanh logistic
    sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh abs sqrt rsqrt cbrt square
    one_minus_square pow integer_pow not and or xor add add_any sub mul div rem max min
    shift_left shift_right_arithmetic shift_right_logical population_count clz mulhi
    eq ne ge gt le lt eq_to le_to lt_to convert_element_type bitcast_convert_type clamp
    select_n reduce_precision real imag complex conj polynomial
    lgamma digamma polygamma igamma igamma_grad_a igammac zeta bessel_i0e bessel_i1e erf erfc
    erf_inv regularized_incomplete_beta
"""
ELEMENTWISE = {*_OF_LAX.split(), "exp_neg_sq"}


# What only moves elements. All of an axis of units stays in its place, or `Mixed` is raised where
# what was moved meets what was not.


def _broadcast(eqn, array, *sizes):
    if sizes:
        raise Unknown("broadcast_in_dim to a size that is not known yet")
    shape = [1] * len(eqn.params["shape"])
    for size, axis in zip(array.shape, eqn.params["broadcast_dimensions"], strict=True):
        shape[axis] = size
    return np.broadcast_to(array.reshape(shape), eqn.params["shape"])


def _reshaped(eqn, array, *sizes):
    if sizes or eqn.params.get("dimensions") is not None:
        raise Unknown("reshape with its own order")
    return array.reshape(eqn.outvars[0].aval.shape)


def _sliced(eqn, array):
    p = eqn.params
    strides = p["strides"] or (1,) * array.ndim
    places = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return array[tuple(slice(*place) for place in places)]


def _places(name, array, sizes, starts):
    if any(s.dtype == object for s in starts):
        raise Unknown(f"{name} at a place that is not known yet")
    firsts = [int(np.clip(s, 0, n - m)) for s, n, m in zip(starts, array.shape, sizes)]
    return tuple(slice(first, first + m) for first, m in zip(firsts, sizes))


def _dynamic_slice(eqn, array, *starts):
    sizes = eqn.params["slice_sizes"]
    if len(starts) != array.ndim:
        raise Unknown("dynamic_slice of a size that is not known yet")
    return array[_places("dynamic_slice", array, sizes, starts)]


def _updated(eqn, array, new, *starts):
    array = array.astype(object)
    array[_places("dynamic_update_slice", array, new.shape, starts)] = new
    return array


def _padded(eqn, array, value):
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 for low, high, _ in config):
        raise Unknown("pad that takes away")
    out = np.empty(eqn.outvars[0].aval.shape, object)
    out[...] = value
    between = zip(array.shape, config)
    out[tuple(slice(low, low + n + (n - 1) * i, i + 1) for n, (low, _, i) in between)] = array
    return out


def _iota(eqn):
    p = eqn.params
    if not all(isinstance(n, int) for n in p["shape"]):
        raise Unknown("iota of a size that is not known yet")
    shape = [1] * len(p["shape"])
    shape[p["dimension"]] = -1
    row = np.arange(p["shape"][p["dimension"]]).astype(p["dtype"])
    return np.broadcast_to(row.reshape(shape), p["shape"])


def _empty(eqn):
    """What a branch that is not taken would have kept for its derivative: nobody reads it."""
    aval = eqn.outvars[0].aval
    return np.zeros(aval.shape, aval.dtype)


def _split(eqn, array):
    p = eqn.params
    return np.split(array, np.cumsum(p["sizes"])[:-1], p["axis"])


MOVES = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": lambda eqn, array: array.reshape(eqn.outvars[0].aval.shape),
    "empty": _empty,
    "empty2": _empty,  # of one number
    "transpose": lambda eqn, array: array.transpose(eqn.params["permutation"]),
    "slice": _sliced,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _updated,
    "concatenate": lambda eqn, *arrays: np.concatenate(arrays, eqn.params["dimension"]),
    "stack": lambda eqn, *arrays: np.stack(arrays, eqn.params["axis"]),
    "unstack": lambda eqn, array: list(np.moveaxis(array, eqn.params["axis"], 0)),
    "split": _split,
    "pad": _padded,
    "rev": lambda eqn, array: np.flip(array, eqn.params["dimensions"]),
    "iota": _iota,
}


# What is known before the program runs, as the count of a loop, is computed here.


def computed(name, eqn, args):
    """The array that an operation gives of known ones; None if it is not computed here."""
    dtype = eqn.outvars[0].aval.dtype
    if name == "convert_element_type":
        (array,) = args
        whole = jnp.issubdtype(dtype, jnp.integer)
        if whole and jnp.issubdtype(array.dtype, jnp.floating):
            info = jnp.iinfo(dtype)
            if not ((array > info.min) & (array < info.max)).all():
                return None
        return array.astype(dtype)
    if name not in _COMPUTED:
        return None
    with np.errstate(all="ignore"):
        found = np.asarray(_COMPUTED[name](*args))
    return found if found.dtype == dtype else None


def _divided(a, b):
    """Integers towards zero, as XLA does."""
    if jnp.issubdtype(a.dtype, jnp.floating):
        return a / b
    if not b.all():
        raise Unknown("div by zero")
    return (np.sign(a) * np.sign(b) * (abs(a) // abs(b))).astype(a.dtype)


def _remainder(a, b):
    if jnp.issubdtype(a.dtype, jnp.integer) and not b.all():
        raise Unknown("rem by zero")
    return np.fmod(a, b)


def _chosen(which, *cases):
    return np.choose(which.astype(np.int32), cases, mode="clip")


_COMPUTED = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _divided,
    "rem": _remainder,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "max": np.maximum,
    "min": np.minimum,
    "floor": np.floor,
    "ceil": np.ceil,
    "square": np.square,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "select_n": _chosen,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
}
