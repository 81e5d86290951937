"""Random elementwise updates: programs, kernels and XLA's loop against what they mean.

    python tests/fuzz_updates.py COUNT [SEED [IMPLEMENTATION...]]

runs whole layers, results and gradients, against the reference in float64: on "cpu" and "xla", or
on others that are named. "tpu" is interpreted, "gpu" emulated.
"""

import contextlib
import functools
import sys

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import lax

import jaxrnn
from jaxrnn._src.ops import native
from jaxrnn._src.ops.recurrence import elements, program
from jaxrnn._src.ops.recurrence.elements import Unknown


@jax.custom_jvp
def straight(x):
    """A step, with the derivative of a line: its rule is no derivative of it."""
    return jnp.where(x > 0.1, 0.5, -0.5).astype(x.dtype)


@straight.defjvp
def _(primals, tangents):
    def body(i, t):
        return 0.9 * t + 0.01 * jnp.asarray(i, t.dtype) * t

    return straight(*primals), lax.fori_loop(0, 3, body, tangents[0])


def _solved(x):
    """Newton's steps to y + y^3 / 3 = x, as a loop that JAX cannot differentiate."""

    def step(carry):
        i, y = carry
        return i + 1, y - (y + y**3 / 3 - x) / (1 + y * y)

    return lax.while_loop(lambda carry: carry[0] < 4, step, (0, jnp.zeros_like(x)))[1]


@jax.custom_vjp
def solved(x):
    return _solved(x)


def _solved_backward(y, g):
    """1 / (1 + y^2) as a loop: six terms of a series in what is below one."""
    z = 1 - (1 + y * y) / 4

    def body(carry, _):
        return 1 + z * carry, carry

    total, partial = lax.scan(body, jnp.ones_like(y), None, length=6)
    return (0.25 * g * (total + 0.1 * partial[2]),)


solved.defvjp(lambda x: (solved(x), solved(x)), _solved_backward)


def _bounded(x):
    return jnp.tanh(x)


ONE = (
    jnp.tanh,
    jax.nn.sigmoid,
    jnp.sin,
    jnp.cos,
    jnp.abs,
    jnp.sign,
    jnp.square,
    jnp.exp2,
    lax.erf,
    lambda x: jnp.exp(-x * x),
    lambda x: jnp.log1p(x * x),
    lambda x: jnp.sqrt(1 + x * x),
    lambda x: lax.rsqrt(1 + x * x),
    lambda x: (1 + x * x) ** -2,
    lambda x: x**3,
    jnp.atan,
    lambda x: jnp.clip(x, -0.7, 0.6),
    jax.nn.relu,
    jax.nn.gelu,
    jax.nn.softplus,
    lambda x: jnp.cbrt(2 + x),
    lambda x: jnp.floor(3 * x) / 3,
    lambda x: -x,
    straight,
    solved,
    lax.stop_gradient,
    lambda x: jnp.log2(2 + x * x),
    jnp.expm1,
    jnp.arcsinh,
    lambda x: x * jnp.isfinite(x),
)
TWO = (
    jnp.add,
    jnp.subtract,
    jnp.multiply,
    jnp.maximum,
    jnp.minimum,
    lambda a, b: a / (1 + b * b),
    lambda a, b: jnp.arctan2(a, 1 + b * b),
    lambda a, b: (1 + a * a) ** b,
    lambda a, b: 0.5 * a + b - 1,
)
COMPARE = (jnp.less, jnp.less_equal, jnp.greater, jnp.greater_equal, jnp.equal, jnp.not_equal)
ROUNDING = (  # no program has these
    jnp.round,
    lambda x: x.astype(jnp.bfloat16).astype(x.dtype),
    lambda x: (x > 0).astype(jnp.int32).astype(x.dtype),
)


class Update:
    """A random update, the same each time it is traced: all that is random is drawn before."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.states, self.gates = int(rng.integers(1, 4)), int(rng.integers(1, 5))
        self.unit = tuple("uv"[: rng.integers(0, 3)])
        self.__name__ = self.__qualname__ = f"random{seed}_update"

    def __call__(self, state, x, r, **unit):
        rng = np.random.default_rng((self.seed, 1))
        known = [*state, *unit.values()]
        for k in range(self.gates):
            known += [x[k] + r[k]] if rng.random() < 0.7 else [x[k], jnp.tanh(r[k]) * x[k], r[k]]
        for _ in range(rng.integers(2, 7)):
            known.append(self.operation(rng, known))
        fresh = known[-min(len(known), 6) :]
        results = [_bounded(self.pick(rng, fresh) + 0.3 * self.pick(rng, known)) for _ in state]
        return tuple(a.astype(state[0].dtype) for a in results)

    def pick(self, rng, known):
        return known[rng.integers(len(known))]

    def simple(self, rng, known):
        if rng.random() < 0.5:
            return ONE[rng.integers(len(ONE))](_bounded(self.pick(rng, known)))
        two = TWO[rng.integers(len(TWO))]
        return two(_bounded(self.pick(rng, known)), _bounded(self.pick(rng, known)))

    def operation(self, rng, known):
        kind = KINDS[rng.integers(len(KINDS))]
        return kind(self, rng, known) if rng.random() < 0.6 else self.simple(rng, known)

    def body(self, rng):
        """A function of (a, b), random but the same at each call."""
        seed = int(rng.integers(1 << 30))

        def body(a, *others):
            inner = np.random.default_rng(seed)
            out = self.simple(inner, [a, *others])
            return _bounded(0.7 * a + 0.5 * self.simple(inner, [out, a, *others]))

        return body

    def where(self, rng, known):
        a, b = self.pick(rng, known), self.pick(rng, known)
        truth = COMPARE[rng.integers(6)](a, 0.5 * b) & (a > -0.4) | ~(b < 0.3)
        return jnp.where(truth ^ (a == b), self.simple(rng, known), b)

    def scanned(self, rng, known):
        body, h, a = self.body(rng), self.pick(rng, known), self.pick(rng, known)
        xs = jnp.asarray(rng.normal(size=int(rng.integers(1, 5))), a.dtype)
        rows = jnp.stack([self.pick(rng, known) for _ in range(len(xs))])

        def step(carry, x):
            scale, row = x
            new = body(carry, scale * a, row)
            return new, (carry * row, scale)

        h, (stack, _) = lax.scan(step, h, (xs, rows), reverse=bool(rng.integers(2)))
        return h + stack.sum(0) * 0.3 + stack[-1]

    def counted(self, rng, known):
        body, a = self.body(rng), self.pick(rng, known)

        def step(i, h):
            return body(h, a * jnp.asarray(i % 3, h.dtype))

        return lax.fori_loop(int(rng.integers(0, 2)), int(rng.integers(2, 5)), step, a)

    def switched(self, rng, known):
        bodies, a = [self.body(rng) for _ in range(3)], self.pick(rng, known)
        b = self.pick(rng, known)

        def step(i, h):
            h = lax.switch(i, bodies, h, a)
            return lax.cond(i > 1, bodies[0], bodies[1], h, b)

        return lax.fori_loop(0, 3, step, b)

    def nested(self, rng, known):
        body = self.body(rng)
        wrap = (jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(jax.jit(f))))
        return wrap[rng.integers(3)](body)(self.pick(rng, known), self.pick(rng, known))

    def cast(self, rng, known):
        a = self.pick(rng, known)
        share = (a > 0).astype(a.dtype) * (a < 0.5).astype(bool).astype(a.dtype)
        table = jnp.asarray([0.3, -0.2, 0.9], jnp.bfloat16)
        return share * a + table[int(rng.integers(3))].astype(a.dtype)

    def rounding(self, rng, known):
        if rng.random() < 0.5:
            return self.simple(rng, known)
        a = self.pick(rng, known)
        rounded = ROUNDING[rng.integers(len(ROUNDING))](a)
        return a + lax.stop_gradient(rounded - a)

    def whiled(self, rng, known):
        """JAX has no derivative of it: its value alone."""
        body, a = self.body(rng), lax.stop_gradient(self.pick(rng, known))
        step = lambda carry: (carry[0] + 1, body(carry[1], a))
        return lax.stop_gradient(lax.while_loop(lambda c: c[0] < 3, step, (0, a))[1])


KINDS = (
    *(Update.where, Update.scanned, Update.counted, Update.switched, Update.nested) * 2,
    Update.cast,
    Update.rounding,
    Update.whiled,
)


def constructor(update):
    small = lambda key, shape, dtype: 0.5 * jax.random.normal(key, shape, dtype)
    return jaxrnn.gated(
        update, gates=update.gates, states=update.states, unit=dict.fromkeys(update.unit, small)
    )


def flat(update):
    """The update and its derivative as a function of flat arrays, and how many it takes."""
    ends = np.cumsum([update.states, update.gates, update.gates, len(update.unit)])

    def value(*args):
        state, x, r, unit = np.split(np.array(range(ends[-1])), ends[:-1])
        take = lambda places: tuple(args[i] for i in places)
        return update(take(state), take(x), take(r), **dict(zip(update.unit, take(unit))))

    def both(*args):
        new, pull = jax.vjp(value, *args[: ends[-1]])
        return *new, *pull(args[ends[-1] :])

    return both, int(ends[-1]) + update.states


def jaxpr(update):
    both, count = flat(update)
    return jax.make_jaxpr(both)(*[jax.ShapeDtypeStruct((3,), jnp.float32)] * count)


# NumPy's, of JAX's operations; a program is compiled for any other.
NUMPY = {
    "abs": np.abs,
    "acos": np.arccos,
    "add": np.add,
    "and": np.bitwise_and,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "cos": np.cos,
    "div": np.divide,
    "eq": np.equal,
    "erf": scipy.special.erf,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sign": np.sign,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
    "xor": np.bitwise_xor,
    "add_any": np.add,
    "copy": np.copy,
    "stop_gradient": np.copy,
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "select_n": lambda which, *some: np.choose(np.asarray(which, int), some),
    "convert_element_type": lambda x, new_dtype, **_: np.asarray(x).astype(new_dtype),
    "integer_pow": lambda x, y: x ** np.asarray(float(y), x.dtype),
    "broadcast_in_dim": lambda x, shape, broadcast_dimensions, **_: np.broadcast_to(
        np.reshape(x, [n if i in broadcast_dimensions else 1 for i, n in enumerate(shape)])
        if np.ndim(x)
        else x,
        shape,
    ),
    "concatenate": lambda *some, dimension: np.concatenate(some, dimension),
    "reduce_sum": lambda x, axes, **_: x.sum(tuple(axes)),
    "squeeze": lambda x, dimensions: np.squeeze(x, dimensions),
}


STATIC = {"convert_element_type", "integer_pow", "broadcast_in_dim", "concatenate", "reduce_sum"}
STATIC |= {"squeeze"}


def meant(jaxpr, args):
    """What a jaxpr gives, one operation at a time, most of them NumPy's."""
    jaxpr, consts = elements.opened(jaxpr)
    env = dict(zip((*jaxpr.invars, *jaxpr.constvars), (*args, *consts), strict=True))
    for eqn in jaxpr.eqns:
        given = [
            np.asarray(v.val, v.aval.dtype) if hasattr(v, "val") else np.asarray(env[v])
            for v in eqn.invars
        ]
        params, name, inner = eqn.params, eqn.primitive.name, elements.called(eqn)
        if inner is not None:
            out = meant(inner, given)
        elif name == "scan":
            first, last = elements.scan_ends(params)
            consts, out, xs = given[:first], given[first:last], given[last:]
            ys, times = [], range(params["length"])[:: -1 if params["reverse"] else 1]
            for t in times:
                both = meant(params["jaxpr"], [*consts, *out, *(x[t] for x in xs)])
                out = both[: len(out)]
                ys.append(both[len(out) :])
            out += [np.stack(y) for y in zip(*ys[:: -1 if params["reverse"] else 1])]
        elif name == "while":
            first = params["cond_nconsts"]
            last = first + params["body_nconsts"]
            out = given[last:]
            while meant(params["cond_jaxpr"], [*given[:first], *out])[0]:
                out = meant(params["body_jaxpr"], [*given[first:last], *out])
        elif name == "cond":
            out = meant(params["branches"][int(given[0])], given[1:])
        elif name in NUMPY and not any(v.aval.dtype == jnp.bfloat16 for v in eqn.invars):
            own = params if name in STATIC else {}
            out = [np.asarray(NUMPY[name](*given, **own), eqn.outvars[0].aval.dtype)]
            assert out[0].shape == eqn.outvars[0].aval.shape, name
        else:
            out = eqn.primitive.bind(*given, **params)
            out = out if eqn.primitive.multiple_results else [out]
        env |= zip(eqn.outvars, out, strict=True)
    return [np.asarray(v.val) if hasattr(v, "val") else np.asarray(env[v]) for v in jaxpr.outvars]


def of_programs(updates, dtype="float64", isa=""):
    """For each update with a program, what this gives and what it should: values and gradients.

    One call of XLA's for all programs: to compile one takes longer than the rest.
    """
    calls, found = [], []
    for update in updates:
        both, count = flat(update)
        rows = [jax.ShapeDtypeStruct((3,), dtype)] * count
        closed = jax.make_jaxpr(both)(*rows)
        function = jax.extend.core.jaxpr_as_fun(closed)
        try:
            made = program.compiled(function, rows, native.library().operations)
        except Unknown:
            continue
        rng = np.random.default_rng(update.seed)
        args = [jnp.asarray(rng.normal(size=3), dtype) for _ in rows]
        out = [jax.ShapeDtypeStruct((3,), dtype)] * len(made.outputs)
        attributes = dict(
            registers=made.registers,
            program=np.array(made.instructions, np.int32).reshape(-1),
            constants=np.array(made.constants, np.float64),
            outputs=np.array(made.outputs, np.int32),
            isa=isa,
        )
        calls.append((jax.ffi.ffi_call("jaxrnn_evaluate", out), args, attributes))
        found.append((update, meant(closed, args)))
    run = jax.jit(lambda: [call(*args, **attributes) for call, args, attributes in calls])
    return [(update, a, b) for a, (update, b) in zip(run(), found, strict=True)]


def of_layer(update, implementation, dtype, steps=3, rows=2, hidden=5):
    """Results and gradients of a layer; those of the reference in float64 for None."""
    cell = constructor(update)(hidden)
    rng = np.random.default_rng(update.seed)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    draw = lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.5, dtype)
    params = {name: draw(a) for name, a in sorted(params.items())}
    state = tuple(draw(np.zeros((rows, hidden))) for _ in range(update.states))
    xs = draw(np.zeros((steps, rows, 2)))
    weights = [draw(a) for a in (*state, np.zeros((steps, rows, hidden)))]

    def loss(params, xs, state):
        state, ys = jaxrnn.unroll(cell, params, xs, state, implementation=implementation)
        out = [*state, ys]
        return sum((a * w).sum() for a, w in zip(out, weights, strict=True)), out

    return jax.jit(lambda *a: jax.grad(loss, (0, 1, 2), has_aux=True)(*a))(params, xs, state)


def error(came, wanted):
    pairs = zip(jax.tree.leaves(came), jax.tree.leaves(wanted), strict=True)
    pairs = [(np.asarray(a, float), np.asarray(b, float)) for a, b in pairs]
    assert all(np.isfinite(b).all() for _, b in pairs), "not bounded"
    return max(abs(a - b).max() / max(abs(b).max(), 1e-2) for a, b in pairs)


def runs(update, platform):
    """Whether a kernel takes the update: an interpreter would take what no TPU can."""
    cell = constructor(update)(5)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    xs = jax.ShapeDtypeStruct((3, 2, 2), jnp.float32)
    return jaxrnn.explain(cell, params, xs, platform=platform).choices[0].runs == platform


@contextlib.contextmanager
def inside(implementation):
    """Where an implementation runs on this machine."""
    with contextlib.ExitStack() as stack:
        if implementation == "tpu":
            from interpreted import interpreted

            stack.enter_context(interpreted())
        if implementation == "gpu":
            from emulated import emulated

            stack.enter_context(emulated())
            stack.enter_context(jax.default_matmul_precision("highest"))
        yield


class Kept:
    """An update that is traced once for each shape: tracing is most of a layer's time."""

    def __init__(self, update):
        functools.update_wrapper(self, update)
        self.kept = {}

    def __call__(self, state, x, r, **unit):
        arrays, tree = jax.tree.flatten(((state, x, r), unit))
        shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)) for a in arrays)
        if shapes not in self.kept:

            def flat(*arrays):
                args, unit = tree.unflatten(arrays)
                return self.__wrapped__(*args, **unit)

            closed = jax.make_jaxpr(flat)(*shapes)
            self.kept[shapes] = jax.extend.core.jaxpr_as_fun(closed)
        return tuple(self.kept[shapes](*arrays))


def main(count, seed=0, *implementations):
    """Whole layers, results and gradients: in float64, or on a chip's kernel in float32."""
    implementations = implementations or ("cpu", "xla")
    ran, worst = dict.fromkeys(implementations, 0), dict.fromkeys(implementations, 0.0)
    for number in range(int(seed), int(seed) + int(count)):
        update = Kept(Update(number))
        taken = [n for n in implementations if n not in ("tpu", "gpu") or runs(update, n)]
        if not taken:
            continue
        with jax.enable_x64(True):
            wanted = of_layer(update, "reference", "float64")
        for name in taken:
            accelerator = name in ("tpu", "gpu")
            try:
                with inside(name), jax.enable_x64(not accelerator):
                    dtype = "float32" if accelerator else "float64"
                    came = of_layer(update, name, dtype)
            except ValueError as refused:
                assert "cannot run this" in str(refused), refused
                continue
            ran[name] += 1
            found = error(came, wanted)
            worst[name] = max(found, worst[name])
            if not found < (1e-3 if accelerator else 1e-9):
                print(f"seed {update.seed} on {name}: {found}\n{jaxpr(update)}", flush=True)
        jax.clear_caches()
    print("ran", ran, "worst", worst)


if __name__ == "__main__":
    main(*sys.argv[1:])
