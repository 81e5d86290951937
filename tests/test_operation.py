"""``Operation`` gives fused kernels every JAX transform: held of a toy, which compiles fast.

What is held here is not held again of each real operation: see `test_transforms`.
"""

from typing import Any, NamedTuple

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import io_callback
from jax.interpreters import partial_eval
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from test_once import compilations
from transforms import MAPPED, TRANSFORMS, equations, grads, hvp, jvp, over, ran, squares

from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.ops.operation import PLAIN, WEIGHT, Operation

pytestmark = pytest.mark.usefixtures("x64")

# The toy:  ys = count * sin(w * xs + b + state)      total = state * (sum of ys^2 over time)


class Problem(NamedTuple):
    implementation: str | None = None
    batch_first: bool = False


class Operands(NamedTuple):
    xs: Any  # [T, B, D]
    weights: Any  # w [D], b [D] or None
    state: Any  # [B, D]
    count: Any  # int [T, B], or None


def inside(operands):
    xs, weights, state, _ = operands
    rows = [state, *(b for b in (weights["b"],) if b is not None)]
    return xs * jnp.broadcast_to(weights["w"], xs.shape) + sum(
        jnp.broadcast_to(row, xs.shape) for row in rows
    )


def counted(operands, ys):
    if operands.count is None:
        return ys
    return ys * jnp.broadcast_to(operands.count[..., None].astype(ys.dtype), ys.shape)


def reference(problem, operands):
    ys = counted(operands, jnp.sin(inside(operands)))
    return operands.state * (ys**2).sum(0), ys


def reads(problem, operands):
    """Where rows are counted, what is read of ys is kept apart from it."""
    return False, operands.count is None


class Told(NamedTuple):
    """What an implementation was given when a program was lowered."""

    name: str
    wanted: Any
    given: Any  # forward, ``save``; backward, which cotangents
    target: Target


TOLD = []


class Implementation:
    def __init__(self, name):
        self.name = name

    def unsupported(self, problem, operands, target):
        assert target.platform, "of no platform is nothing chosen: the default runs"
        return "it is for CPUs" if self.name == "fast" and target.platform != "cpu" else None

    def forward(self, problem, operands, wanted, save, target):
        if target is not PLAIN:
            TOLD.append(Told(f"{self.name} forward", wanted, save, target))
        z = inside(operands)
        ys, slope = counted(operands, jnp.sin(z)), counted(operands, jnp.cos(z))
        total = operands.state * (ys**2).sum(0) if wanted[0] else None
        kept = (slope,) if reads(problem, operands)[1] else (slope, ys)
        return [total, ys if wanted[1] else None, *(kept if save else ())]

    def backward(self, problem, operands, outputs, residuals, cotangents, wanted, target):
        if target is not PLAIN:
            given = tuple(d is not None for d in cotangents)
            TOLD.append(Told(f"{self.name} backward", wanted, given, target))
        slope, *rest = residuals
        assert outputs[0] is None and (outputs[1] is None) == bool(rest)
        ys = rest[0] if rest else outputs[1]
        d_total, d_ys = cotangents
        d_state, d_ys = 0.0, jnp.zeros_like(ys) if d_ys is None else d_ys
        if d_total is not None:
            d_state = d_total * (ys**2).sum(0)
            d_ys = d_ys + ys * jnp.broadcast_to(2 * operands.state * d_total, ys.shape)
        d, rows = d_ys * slope, tuple(range(ys.ndim - 1))
        w, b = operands.weights["w"], operands.weights["b"]
        return operands._replace(
            xs=d * jnp.broadcast_to(w, d.shape) if wanted.xs else None,
            weights={
                "w": (d * operands.xs).sum(rows) if wanted.weights["w"] else None,
                "b": None if b is None else d.sum(rows),
            },
            state=d_state + d.sum(0),
        )


IMPLEMENTATIONS = {"fast": Implementation("fast"), "plain": Implementation("plain")}


OPERATION = Operation(
    "toy",
    IMPLEMENTATIONS,
    reference=reference,
    operand_axes=Operands(xs=1, weights=WEIGHT, state=0, count=1)._asdict(),
    output_axes=lambda problem: (0, 1),
    residual_axis=1,
    reads=reads,
    folded=lambda problem: problem._replace(batch_first=True),
)


def toy(problem, operands):
    return OPERATION(problem, varying(operands))


@pytest.fixture
def told():
    """A list of what implementations are told while the test runs."""
    TOLD.clear()
    yield TOLD
    TOLD.clear()


# Its arrays, and numbers made of what it gives.

T, B, D = 3, 2, 2
RNG = np.random.default_rng(0)
XS, STATE = RNG.normal(size=(T, B, D)), RNG.normal(size=(B, D))
WEIGHTS = {"w": RNG.normal(size=D), "b": RNG.normal(size=D)}
COUNT = RNG.integers(1, 4, size=(T, B)).astype(np.int32)
COTANGENTS = RNG.normal(size=(B, D)), RNG.normal(size=(T, B, D))
ARGS = XS, WEIGHTS, STATE
KINDS = ("whole", "bare")


def outputs(run, kind="whole"):
    """``run`` as a function of (xs, weights, state): with all operands, or no more than needed."""

    def function(xs, weights, state):
        if kind == "whole":
            return run(Problem(), Operands(xs, weights, state, COUNT))
        return run(Problem(), Operands(xs, {"w": weights["w"], "b": None}, state, None))

    return function


def loss(run, kind="whole"):
    """A number made of both outputs, not linear in either."""

    def value(*args):
        total, ys = outputs(run, kind)(*args)
        return (jnp.sin(total) * COTANGENTS[0]).sum() + (jnp.cos(ys) * COTANGENTS[1]).sum()

    return value


def agree(transforms, of=loss, kinds=KINDS):
    """What each of some transforms gives of the toy is what it gives of its reference."""
    functions = {
        (name, run, kind): transform(of(run, kind))
        for name, transform in transforms.items()
        for run in (toy, reference)
        for kind in kinds
    }
    found = ran(functions, *ARGS)
    for name in transforms:
        for kind in kinds:
            (came, names), (wanted, plain) = (found[name, run, kind] for run in (toy, reference))
            assert cases.error(came, wanted) < 1e-11, (name, kind)
            assert any(n.startswith("toy") for n in names), f"{name}: the operation did not run"
            assert not any(n.startswith("toy") for n in plain)


# The definition.


def definition(xs, w, b, state, count):
    ys = count[..., None] * np.sin(w * xs + b + state)
    return state * (ys**2).sum(0), ys


@pytest.mark.parametrize("kind", KINDS)
def test_definition(kind, told):
    """NumPy's results, and its derivatives by a complex step along each array."""
    count = COUNT if kind == "whole" else np.ones((T, B))
    b = WEIGHTS["b"] if kind == "whole" else np.zeros(D)
    arrays = XS, WEIGHTS["w"], b, STATE

    def graded(*args):
        out, pull = jax.vjp(outputs(toy, kind), *args)
        return out, pull(COTANGENTS)

    out, (d_xs, d_weights, d_state) = jax.jit(graded)(*ARGS)
    assert cases.error(out, definition(*arrays, count)) < 1e-14
    gradients = d_xs, d_weights["w"], d_weights["b"], d_state
    for i, (gradient, array) in enumerate(zip(gradients, arrays)):
        if kind == "bare" and array is b:
            continue
        along = RNG.normal(size=array.shape)
        bent = [a + 1e-30j * along if i == k else a for k, a in enumerate(arrays)]
        slopes = [o.imag / 1e-30 for o in definition(*bent, count)]
        wanted = sum((d * s).sum() for d, s in zip(COTANGENTS, slopes))
        assert abs((gradient * along).sum() - wanted) < 1e-12
    assert [t.name for t in told] == ["fast forward", "fast backward"]


def test_outside_of_jit():
    """The same, and what has run once is not compiled again."""

    def both(args):
        out, pull = jax.vjp(outputs(toy), *args)
        return out, pull(COTANGENTS)

    wanted = jax.jit(both)(ARGS)
    args = jax.device_put(ARGS)
    assert cases.error(both(args), wanted) < 1e-14
    with compilations() as second:
        both(args)
    assert not second


# Transforms.


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform):
    agree({transform: TRANSFORMS[transform]})


DATA, INPUTS, WEIGHT_ONLY, STATE_ONLY = (
    (0, None, 1),
    (2, None, None),
    (None, 0, None),
    (None, None, 0),
)
LEVELS = {
    "rows": (DATA,),
    "inputs": (INPUTS,),
    "weights": (WEIGHT_ONLY,),
    "states": (STATE_ONLY,),
    "all": ((3, 1, 2),),
    "rows, then weights": (DATA, WEIGHT_ONLY),
    "weights, then rows": (WEIGHT_ONLY, DATA),
    "rows, then rows": (DATA, INPUTS),
    "weights, then weights": (WEIGHT_ONLY, (None, 1, None)),
    "all, then states": ((3, 1, 2), STATE_ONLY),
}


@pytest.mark.parametrize("levels", LEVELS)
def test_vmap(levels):
    first, *others = levels = LEVELS[levels]
    transforms = {name: lambda f, m=m: m(f, *levels) for name, m in MAPPED.items()}
    if others:
        transforms["vmap of grad of vmap"] = lambda f: over(
            grads(squares(over(f, first))), *others
        )
    agree(transforms, kinds=("whole",) if others else KINDS)


FIELDS = {  # the axes of xs, w, b, state and count
    "xs": (2, None, None, None, None),
    "w": (None, 1, None, None, None),
    "b": (None, None, 0, None, None),
    "state": (None, None, None, 1, None),
    "count": (None, None, None, None, 2),
    "xs and count": (0, None, None, None, 1),
    "xs and w": (1, 0, None, None, None),
    "b and count": (None, 1, None, None, 0),
    "all": (3, 1, 0, 2, 0),
}


def test_each_operand_mapped():
    """Results and gradients, of any operand alone, and of integers too."""

    def graded(run, axes):
        def each(xs, w, b, state, count):
            def moving(xs, weights, state):
                return run(Problem(), Operands(xs, weights, state, count))

            out, pull = jax.vjp(moving, xs, {"w": w, "b": b}, state)
            return out, pull(COTANGENTS)

        return over(each, axes)

    functions = {(n, run): graded(run, a) for n, a in FIELDS.items() for run in (toy, reference)}
    found = ran(functions, XS, WEIGHTS["w"], WEIGHTS["b"], STATE, COUNT)
    for name in FIELDS:
        assert cases.error(found[name, toy][0], found[name, reference][0]) < 1e-12, name
        assert "toy_backward" in found[name, toy][1]


def test_rows_of_one_output():
    """The gradient of data alone, of either output alone: it stays one batch."""

    def graded(run, kind, which, axes):
        def one(xs, state):
            return (outputs(run, kind)(xs, WEIGHTS, state)[which] * COTANGENTS[which]).sum()

        return over(grads(one), axes)

    given = [(k, which, axes) for k in KINDS for which in (0, 1) for axes in ((0, 1), (2, None))]
    functions = {(run, *g): graded(run, *g) for g in given for run in (toy, reference)}
    found = ran(functions, XS, STATE)
    for g in given:
        assert cases.error(found[toy, *g][0], found[reference, *g][0]) < 1e-12, g
        assert binds(functions[toy, *g], XS, STATE)["toy_backward"].params["maps"] == ()


# What is in a program.


def binds(function, *args):
    """The equations of the toy's primitives in a function's jaxpr, by name."""
    found = [e for e in equations(jax.make_jaxpr(function)(*args).jaxpr)]
    return {e.primitive.name: e for e in found if e.primitive.name.startswith("toy")}


def test_gradients_are_fused():
    """Reverse mode runs the fused backward, and nothing of the reference's derivative."""
    for kind in KINDS:
        f = grads(loss(toy, kind))
        for function in (f, *(over(f, *levels) for levels in LEVELS.values())):
            assert set(binds(function, *ARGS)) == {"toy", "toy_backward"}


def test_rows_are_one_batch():
    """``vmap`` over data adds a batch axis, and says so where the new one lies before all others.

    Any other is a level of ``maps``.
    """
    f = outputs(toy)
    for axes, first in (((0, None, 0), True), ((0, None, None), True), ((1, None, 0), False)):
        (found,) = binds(over(f, axes), *ARGS).values()
        assert found.params["maps"] == () and found.params["problem"].batch_first is first
        assert found.invars[0].aval.shape == (T, 3, B, D)
    # xs, b, w, state, count
    (found,) = binds(over(f, WEIGHT_ONLY), *ARGS).values()
    assert found.params["maps"] == ((False, True, True, False, False),)
    assert not found.params["problem"].batch_first
    # Behind the members that it is of, or before them.
    for axis, first in ((1, True), (0, False)):
        (found,) = binds(over(f, (0, 0, None), (axis, None, None)), *ARGS).values()
        assert found.params["maps"] == ((True, True, True, False, False),)
        assert found.params["problem"].batch_first is first
    (found,) = binds(over(f, STATE_ONLY), *ARGS).values()
    assert found.params["maps"] == ((False, False, False, True, False),)
    (found,) = binds(over(f, WEIGHT_ONLY, (0, None, 0)), *ARGS).values()
    assert found.params["problem"].batch_first is True
    backward = binds(over(grads(lambda x, s: loss(toy)(x, WEIGHTS, s)), (0, 0)), XS, STATE)
    assert backward["toy_backward"].params["maps"] == ()
    assert backward["toy_backward"].params["problem"].batch_first is True


def test_gradients_of_shared_weights_are_summed():
    """Over the levels at which weights are not mapped; those of members stay apart."""
    f = lambda *args: squares(over(loss(toy), WEIGHT_ONLY))(*args)
    backward = binds(grads(f), *ARGS)["toy_backward"]
    assert backward.params["sums"] == ((False, True, True, False),)
    backward = binds(over(grads(loss(toy)), DATA), *ARGS)["toy_backward"]
    assert backward.params["sums"] == ((True,) * 4,)


def test_what_does_not_move_has_no_tangent():
    """Nor has an output a cotangent that nothing depends on."""
    state_only = lambda s: jax.jvp(lambda s: outputs(toy)(XS, WEIGHTS, s), (s,), (s,))
    tangent = binds(state_only, STATE)["toy_tangent"]
    assert tangent.params["present"] == (False, False, False, True, False)
    for which in (0, 1):
        one = lambda *args: outputs(toy)(*args)[which].sum()  # noqa: B023
        backward = binds(grads(one), *ARGS)["toy_backward"]
        assert backward.params["given"] == (which == 0, which == 1)
    frozen = lambda w: loss(toy)(XS, {"w": w, "b": WEIGHTS["b"]}, STATE)
    wanted = binds(jax.grad(frozen), WEIGHTS["w"])["toy_backward"].params["wanted"]
    assert wanted == (False, False, True, False, False)


PARTS = {  # of a tangent: which of its outputs, and of its arguments, are transposed
    "all": (slice(None), (0, 1, 2)),
    "ys of xs": (slice(1, 2), (0,)),
    "total of state": (slice(1), (2,)),
    "total of weights and state": (slice(1), (1, 2)),
}


@pytest.mark.parametrize("part", PARTS)
def test_the_tangent_is_linear(part):
    """Its transpose is the fused backward, also of a part; of members, and of rows."""
    outs, moving = PARTS[part]

    def of(levels):
        def transposed(f):
            def run(*args):
                def tangent(*given):
                    along = [jax.tree.map(jnp.zeros_like, arg) for arg in args]
                    for i, t in zip(moving, given):
                        along[i] = t
                    return jax.jvp(over(f, *levels), args, tuple(along))[1][outs]

                picked = [args[i] for i in moving]
                like = jax.eval_shape(tangent, *picked)
                return jax.linear_transpose(tangent, *picked)(cases.cotangents(like))

            return run

        return transposed

    transforms = {str(levels): of(levels) for levels in ((), (WEIGHT_ONLY,), (DATA,))}
    agree(transforms, outputs)


# Dead code.


def pruned(function, used):
    """A function without what its unused results need, as ``jit`` leaves it."""

    def run(*args):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        flags = [i in used for i in range(len(closed.out_avals))]
        alive, _ = partial_eval.dce_jaxpr(closed.jaxpr, flags, instantiate=True)
        return jax.core.eval_jaxpr(alive, closed.consts, *jax.tree.leaves(args))

    return run


def made(function, *args):
    """What is left of the toy when dead code is gone: name, what is wanted, ``save``."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    alive, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    found = [e for e in equations(alive) if e.primitive.name.startswith("toy")]
    return [(e.primitive.name, e.params.get("wanted"), e.params.get("save")) for e in found]


def total_of(run):
    return lambda *args: outputs(run)(*args)[0]


CONTEXTS = {
    "jit": jax.jit,
    "scan": lambda f: (
        lambda xs, *others: jax.lax.scan(
            lambda _, k: (f(k * xs, *others), None), f(xs, *others), jnp.ones(2)
        )
    ),
    "remat": jax.remat,
    "cond": lambda f: lambda xs, *others: jax.lax.cond(xs.sum() > 0, f, f, xs, *others),
    "rows": lambda f: over(f, DATA),
    "ensemble": lambda f: over(f, WEIGHT_ONLY),
    "shard_map": lambda f: jax.shard_map(
        f,
        mesh=Mesh(np.array(jax.devices()[:1]), "d"),
        in_specs=P(),
        out_specs=P(),
        check_vma=False,
    ),
}


def test_where_dead_code_is_found():
    for context in CONTEXTS.values():
        found = made(context(total_of(toy)), *ARGS)
        assert found and set(found) == {("toy", (True, False), False)}
    functions = {
        (n, run): c(total_of(run)) for n, c in CONTEXTS.items() for run in (toy, reference)
    }
    found = ran(functions, *ARGS)
    for name in CONTEXTS:
        assert cases.error(found[name, toy][0], found[name, reference][0]) < 1e-13, name


def test_what_nobody_uses_is_not_made(told):
    assert made(lambda *args: (outputs(toy)(*args), args[0])[1], *ARGS) == []
    # A value whose gradient is not used saves nothing; a gradient whose value is not used makes
    # no output, but for what its backward reads.
    both = lambda kind: jax.value_and_grad(lambda *args: outputs(toy, kind)(*args)[0].sum())
    assert made(lambda *args: both("whole")(*args)[0], *ARGS) == [("toy", (True, False), False)]
    for kind, read in (("whole", False), ("bare", True)):
        forward, backward = made(lambda *args: both(kind)(*args)[1], *ARGS)  # noqa: B023
        assert forward == ("toy", (False, read), True)
        assert backward[1][0] and sum(backward[1]) == 1
        told.clear()
        jax.jit(lambda *args: both(kind)(*args)[1]).lower(*ARGS)  # noqa: B023
        forward, backward = told
        assert (forward.wanted, forward.given) == ((False, read), True)
        assert backward.given == (True, False)
        weights = {"w": False, "b": False} if kind == "whole" else {"w": False, "b": None}
        assert backward.wanted[:3] == (True, weights, False)
    # Nor does a derivative want again what was not wanted before it.
    left = lambda *args: pruned(outputs(toy), (0,))(*args)[0].sum()
    assert binds(grads(left), *ARGS)["toy"].params["wanted"] == (True, False)
    tangent = lambda xs: jax.jvp(lambda xs: outputs(toy)(xs, WEIGHTS, STATE), (xs,), (xs,))[0]
    assert {name for name, *_ in made(tangent, XS)} == {"toy"}


FLAT = {  # functions with several results, and those of them that are used
    "values": (lambda run: outputs(run), ((0,), (1,))),
    "values of rows": (lambda run: over(outputs(run), DATA), ((0,), (1,))),
    "values of members": (lambda run: over(outputs(run), WEIGHT_ONLY), ((0,), (1,))),
    "gradients": (lambda run: grads(loss(run)), ((0,), (1, 3))),
    "gradients of rows": (lambda run: over(grads(loss(run)), DATA), ((2,),)),
    "gradients of members": (lambda run: over(grads(loss(run)), WEIGHT_ONLY), ((0,),)),
    "sums over members": (lambda run: grads(squares(over(loss(run), WEIGHT_ONLY))), ((0,), (2,))),
}


@pytest.mark.parametrize("name", FLAT)
def test_transforms_after_dead_code(name):
    """What is left when results are gone is transformed as all of it is."""
    function, sets = FLAT[name]
    transforms = {
        "value": lambda f: f,
        "jvp": jvp,
        "grad": lambda f: grads(squares(f)),
        "rows": lambda f: over(f, DATA),
        "members": lambda f: over(f, WEIGHT_ONLY),
    }
    if name.startswith("values"):
        transforms["hessian-vector"] = lambda f: hvp(squares(f))
    picked = lambda f, used: lambda *args: [jax.tree.leaves(f(*args))[i] for i in used]
    functions = {}
    for used in sets:
        for transform, apply in transforms.items():
            functions[used, transform, toy] = apply(pruned(function(toy), used))
            functions[used, transform, reference] = apply(picked(function(reference), used))
    found = ran(functions, *ARGS)
    for used, transform, run in functions:
        if run is toy:
            (came, names), (wanted, _) = (found[used, transform, r] for r in (toy, reference))
            assert cases.error(came, wanted) < 1e-11, (used, transform)
            assert any(n.startswith("toy") for n in names)


def test_residuals_are_made_together():
    flat, tree = jax.tree.flatten(Operands(*ARGS, COUNT))
    parameters = dict(problem=Problem(), tree=tree, wanted=(True, True), save=True, maps=())
    saved = lambda *flat: OPERATION.forward.bind(*flat, **parameters)
    for i, wanted in enumerate(saved(*flat)):
        (came,) = jax.jit(pruned(saved, (i,)))(*flat)
        assert cases.error(came, wanted) < 1e-14


def test_what_has_an_effect_stays():
    """As a kernel that is interpreted has, which keeps an order."""
    ordered = jax.make_jaxpr(lambda: io_callback(lambda: None, None, ordered=True))()
    jaxpr = jax.make_jaxpr(outputs(toy))(*ARGS).jaxpr
    (eqn,) = jaxpr.eqns
    for effects, left in ((ordered.effects, 1), (eqn.effects, 0)):
        changed = jaxpr.replace(eqns=[eqn.replace(effects=effects)], effects=effects)
        alive, used = partial_eval.dce_jaxpr(changed, [False, False])
        assert len(alive.eqns) == left and any(used) == bool(left)


# Where it runs.


def value_and_grads(run, kind="whole"):
    return lambda *args: jax.value_and_grad(
        lambda *args: squares(outputs(run, kind))(*args), (0, 1, 2)
    )(*args)


def names(told):
    return [t.name for t in told]


def test_the_platform_chooses(told):
    """When a program is lowered, of any platform; the default where nothing is known of one."""
    f = value_and_grads(toy)
    for platform in ("cpu", "tpu", "cuda", "rocm"):
        told.clear()
        jax.jit(f).trace(*ARGS).lower(lowering_platforms=(platform,))
        best = "fast" if platform == "cpu" else "plain"
        assert names(told) == [f"{best} forward", f"{best} backward"]
        assert {t.target.platform for t in told} == {platform}
        assert not any(t.target.exported for t in told)
    told.clear()  # of which it is not told here
    jax.jit(f).trace(*ARGS).lower(lowering_platforms=("another",))
    assert names(told) == []
    named = lambda *args: toy(Problem("plain"), Operands(*args, COUNT))
    told.clear()
    jax.jit(named).lower(*ARGS)
    assert names(told) == ["plain forward"]


@pytest.mark.parametrize("symbolic", (False, True))
def test_one_module_for_all_platforms(symbolic, told):
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
    shapes = [jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), a) for a in ARGS]
    if symbolic:
        steps, rows = export.symbolic_shape("T, B")
        shapes[0] = jax.ShapeDtypeStruct((steps, rows, D), XS.dtype)
        shapes[2] = jax.ShapeDtypeStruct((rows, D), STATE.dtype)
    platforms = ("cpu", "tpu", "cuda", "rocm")
    f = value_and_grads(toy, "bare")
    exported = export.export(jax.jit(f), platforms=platforms)(*shapes)
    assert exported.platforms == platforms
    assert all(t.target.exported for t in told)
    for platform in platforms:
        best = "fast" if platform == "cpu" else "plain"
        chosen = [t.name for t in told if t.target.platform == platform]
        assert chosen == [f"{best} forward", f"{best} backward"]
    came = export.deserialize(exported.serialize()).call(*ARGS)
    assert cases.error(came, jax.jit(value_and_grads(reference, "bare"))(*ARGS)) < 1e-13


DEVICES = 8
many_devices = pytest.mark.skipif(
    jax.device_count() < DEVICES, reason=f"{jax.device_count()} devices, wants {DEVICES}"
)
ROWS = (
    RNG.normal(size=(T, 2 * DEVICES, D)),
    WEIGHTS,
    RNG.normal(size=(2 * DEVICES, D)),
    RNG.integers(1, 4, size=(T, 2 * DEVICES)).astype(np.int32),
)
SPECS = P(None, "batch"), P(), P("batch"), P(None, "batch")


def of_rows(run):
    """Value and gradients, with and without a count."""

    def both(xs, weights, state, count):
        def number(*args):
            parts = run(Problem(), Operands(*args, count)), run(Problem(), Operands(*args, None))
            return sum((a**2).sum() for a in jax.tree.leaves(parts))

        return jax.value_and_grad(number, (0, 1, 2))(xs, weights, state)

    return both


def close(came):
    return cases.error(came, jax.jit(of_rows(reference))(*ROWS)) < 1e-12


@many_devices
@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit), ids=str)
def test_jit_on_a_mesh(kind):
    """Rows stay on their devices; weights' gradients, and the number, are summed over them."""
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        places = [NamedSharding(mesh, spec) for spec in SPECS]
        placed = [jax.device_put(a, place) for a, place in zip(ROWS, places)]
        compiled = jax.jit(of_rows(toy)).lower(*placed).compile()
        came = compiled(*placed)
    assert close(came)
    assert came[1][0].sharding.is_equivalent_to(places[0], 3)
    assert came[1][2].sharding.is_equivalent_to(places[2], 2)
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text


@many_devices
@pytest.mark.parametrize("check", (True, False))
def test_shard_map(check):
    def one(xs, weights, state, count):
        # Weights that vary by device give each device's own gradient, to be summed.
        weights = jax.lax.pcast(weights, ("batch",), to="varying") if check else weights
        value, (d_xs, d_weights, d_state) = of_rows(toy)(xs, weights, state, count)
        value, d_weights = jax.lax.psum((value, d_weights), "batch")
        return value, (d_xs, d_weights, d_state)

    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("batch",))
    mapped = jax.shard_map(
        one, mesh=mesh, in_specs=SPECS, out_specs=(P(), SPECS[:3]), check_vma=check
    )
    assert close(jax.jit(mapped)(*ROWS))


def test_an_implementation_is_asked_for_by_name():
    """The last one is for any platform; the reference runs only if its name is given."""
    asked = lambda name: OPERATION.chosen("toy", Problem(implementation=name), Operands(*ROWS))
    assert asked(None) is asked("plain") is OPERATION
    assert OPERATION.default is IMPLEMENTATIONS["plain"]
    assert asked("reference") is OPERATION.plain is not OPERATION
    with pytest.raises(ValueError, match=r"implementation: got 'slow', but this operation has"):
        asked("slow")


@many_devices
def test_implementations_are_told_of_devices(told):
    """How many divide the arrays: all under ``jit``, none inside of a ``shard_map``."""
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("batch",))
    two = Mesh(np.array(jax.devices()[:DEVICES]).reshape(2, 4), ("batch", "other"))
    chip, (xs, weights, state, _) = jax.devices()[0].device_kind, ROWS

    def lowered(run, *arrays):
        told.clear()
        jax.jit(run).lower(*arrays)
        return [t.target._replace(mesh=None) for t in told]

    def run(xs, weights, state):
        return toy(Problem(), Operands(xs, weights, state, None))[1]

    assert lowered(run, xs, weights, state) == [Target("cpu", chip, 1, False)]
    placed = jax.device_put(xs, NamedSharding(mesh, SPECS[0]))
    assert lowered(run, placed, weights, state) == [Target("cpu", chip, DEVICES, False)]
    assert dict(told[-1].target.mesh.shape) == {"batch": DEVICES}
    for where, axes, left in ((mesh, {"batch"}, 1), (two, {"batch"}, 4), (two, None, 1)):
        mapped = jax.shard_map(
            run,
            mesh=where,
            in_specs=SPECS[:3],
            out_specs=SPECS[0],
            check_vma=False,
            **({"axis_names": axes} if axes else {}),
        )
        target = Target("cpu", chip, left, False, mixed=left > 1)
        assert lowered(mapped, xs, weights, state) == [target]
    told.clear()
    export.export(jax.jit(run), platforms=("tpu",))(xs, weights, state)
    assert told[-1].target == Target("tpu", None, 1, True)  # the chip here is another one
