"""The delta rule over many chunks, by its definition in NumPy."""

import functools
import types

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from transforms import ran, six

import jaxrnn
from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops import delta_rule as operation
from jaxrnn._src.ops.delta_rule import delta_rule, xla
from jaxrnn._src.ops.delta_rule.chunked import inverse

HEADS, KEY, VALUE = 2, 5, 3
KERNEL = ("cpu",) * (cases.NO_KERNEL is None)
FORMS = ("xla", "chunks", *KERNEL)  # "chunks" is what "xla" does on a GPU


def every_form(test):
    return pytest.mark.usefixtures("chunks")(pytest.mark.parametrize("form", FORMS)(test))


RULES = {  # what decays, whether there are a and b, and what is read
    "linear": (None, False, False),
    "scalar": (1, False, True),
    "vector": (KEY, False, False),
    "vector_before": (KEY, False, True),
    "delta": (None, True, False),
    "gated_delta": (1, True, False),
    "kimi_delta": (KEY, True, False),
    "anything": (KEY, True, False),
    "anything_before": (KEY, True, True),
}
LOGS = np.array([0, -1e-7, -1e-3, -1, -20, -1e4, -np.inf])  # of decays: near 1, near 0 and 0


@pytest.fixture
def chunks(monkeypatch):
    gpu = Target("cuda")
    module = types.SimpleNamespace(
        unsupported=xla.unsupported,
        forward=lambda *given: xla.forward(*given[:-1], gpu),
        backward=lambda *given: xla.backward(*given[:-1], gpu),
    )
    monkeypatch.setitem(operation.IMPLEMENTATIONS, "chunks", module)


def example(rule, steps, seed=0, widths=(KEY, VALUE)):
    """Operands in float64, of three rows; with ``anything``, a and b are neither k nor each other.

    The keys are of length 1 and beta is up to 2, near it in every other step.
    """
    decay, delta, before = RULES[rule]
    rng, shape, (key, value) = np.random.default_rng(seed), (steps, 3, HEADS), widths
    q, k, a, b = rng.normal(size=(4, *shape, key))
    v, state = rng.normal(size=(*shape, value)), rng.normal(size=(3, HEADS, key, value))
    k, a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (k, a, b))
    log_w = None if decay is None else rng.choice(LOGS, (*shape, 1 if decay == 1 else key))
    beta = np.where(rng.random((*shape, 1)) < 0.5, 1.999, 2 * rng.random((*shape, 1)))
    if rule in ("delta", "gated_delta", "kimi_delta"):
        b = k if log_w is None else k * np.exp(log_w)
        k, a = beta * k, None
    else:  # as RWKV-7: what is taken away is less than all
        a = -0.9 * b * rng.random((*shape, 1)) + 0.05 * a
    taken = (q, k, v, log_w, a, b) if delta else (q, k, v, log_w, None, None)
    mask, starts = rng.random((steps, 3)) < 0.8, rng.random((steps, 3)) < 0.05
    return taken, state, before, mask, starts


def definition(taken, state, before, mask, starts, reverse):
    """S_t = (diag(w_t) + a_t b_t') S_{t-1} + k_t v_t', step by step and row by row."""
    q, k, v, log_w, a, b = taken
    arrays = [x for x in (*taken, state) if x is not None]
    ys = np.zeros((*v.shape,), np.result_type(*arrays))
    states = np.zeros(state.shape, ys.dtype)
    for row in range(len(state)):
        S = state[row]
        for t, fresh in truth.order(mask[:, row], starts[:, row], reverse):
            S = np.zeros_like(S) if fresh else S
            if not mask[t, row]:
                continue
            at = t, row
            new = S if log_w is None else np.exp(log_w[at])[..., None] * S
            if b is not None:
                away = -k[at] if a is None else a[at]
                new = new + np.einsum("nd,nf,nfe->nde", away, b[at], S)
            new = new + np.einsum("nd,ne->nde", k[at], v[at])
            ys[at] = np.einsum("nd,nde->ne", q[at], S if before else new)
            S = new
        states[row] = S
    return states, ys


@functools.partial(jax.jit, static_argnames=("before", "reverse", "form"))
def run(taken, state, before, mask, starts, reverse, form):
    return delta_rule(
        taken, state, before=before, mask=mask, starts=starts, reverse=reverse, implementation=form
    )


@functools.partial(jax.jit, static_argnames=("before", "reverse", "form"))
def graded(taken, state, before, mask, starts, reverse, form, weights):
    """Results and the gradients of operands and state, with cotangents ``weights``."""
    both = lambda taken, state: delta_rule(
        taken, state, before=before, mask=mask, starts=starts, reverse=reverse, implementation=form
    )
    out, pull = jax.vjp(both, taken, state)
    return out, pull(weights)


@pytest.mark.usefixtures("x64")
@every_form
@pytest.mark.parametrize("rule", RULES)
def test_the_definition(rule, form):
    """Three chunks and a part of one: results, and a derivative along each operand."""
    taken, state, before, mask, starts = example(rule, 101)
    reverse = before  # either direction, of different rules
    flags = before, mask, starts, reverse
    wanted = definition(taken, state, *flags)
    weights = cases.cotangents(wanted)
    out, gradients = graded(taken, state, *flags, form, weights)
    assert cases.error(out, wanted) < 1e-12
    moving, tree = jax.tree.flatten((taken, state))
    rng = np.random.default_rng(2)
    for leaf, (x, gradient) in enumerate(zip(moving, jax.tree.leaves(gradients), strict=True)):
        direction = rng.normal(size=x.shape)
        if x is taken[3]:  # not where a decay is 0: its logarithm there has no effect
            direction *= x > -100
        bent = [*moving]
        bent[leaf] = x + 1j * truth.TINY * direction
        slopes = definition(*tree.unflatten(bent), *flags)
        slope = sum((w * s.imag / truth.TINY).sum() for w, s in zip(weights, slopes))
        came = (np.asarray(gradient) * direction).sum()
        assert abs(came - slope) < 1e-11 * max(1, abs(slope)), leaf


@pytest.mark.parametrize("rule", ("scalar", "vector_before", "delta", "gated_delta", "anything"))
@every_form
def test_thousands_of_steps_in_float32(rule, form):
    taken, state, before, mask, starts = example(rule, 4096)
    narrow = jax.tree.map(lambda x: x.astype(np.float32), (taken, state))
    wide = jax.tree.map(lambda x: x.astype(float), narrow)
    came = run(*narrow, before, mask, starts, False, form)
    assert cases.error(came, definition(*wide, before, mask, starts, False)) < 1e-4


@every_form
def test_gradients_are_finite_whatever_the_decay(form):
    """Also where it is zero, of which the logarithm is infinite."""
    taken, state, before, mask, starts = example("anything", 70)
    given = jax.tree.map(np.float32, (taken, state))
    weights = jax.tree.map(np.float32, (state, taken[2]))
    leaves = jax.tree.leaves(graded(*given, before, mask, starts, False, form, weights))
    assert all(bool(jnp.isfinite(x).all()) for x in leaves)


@pytest.mark.parametrize("rule", ("vector", "anything"))
@every_form
def test_a_start_puts_back_what_is_not_finite(rule, form):
    """In the middle of a chunk; before it, what is read is not a number."""
    taken, state, before, mask, starts = example(rule, 40)
    taken, state = jax.tree.map(np.float32, (taken, state))
    starts = np.zeros_like(starts)
    starts[7] = True
    mask = np.ones_like(mask)
    bad, zero = np.full_like(state, np.nan), np.zeros_like(state)
    came, wanted = (run(taken, s, before, mask, starts, False, form) for s in (bad, zero))
    assert cases.error((came[0], came[1][7:]), (wanted[0], wanted[1][7:])) < 1e-6
    assert np.isnan(np.asarray(came[1][:7])).all()


@functools.partial(jax.jit, static_argnames=("before", "form"))
def of_sines(taken, state, before, mask, starts, form):
    """Results, and gradients of a loss that is NaN wherever one of them is."""

    def loss(taken, state):
        out = delta_rule(
            taken, state, before=before, mask=mask, starts=starts, implementation=form
        )
        return sum(jnp.sin(x).sum() for x in out), out

    return jax.grad(loss, (0, 1), has_aux=True)(taken, state)


@pytest.mark.parametrize(
    ("rule", "operand"),  # q, k, v or b
    [("vector_before", 2), ("anything", 0), ("anything", 1), ("anything", 2), ("anything", 5)],
)
@every_form
def test_what_is_not_finite_stays_in_its_episode(rule, operand, form):
    """Neither do the episodes before and after it see it, in a chunk of it or a later one.

    Nor do their gradients.
    """
    taken, state, before, mask, _ = example(rule, 40)
    taken, state = jax.tree.map(np.float32, (taken, state))
    mask, times = np.ones_like(mask), np.arange(40)
    broken = [x if x is None else x.copy() for x in taken]
    broken[operand][5] = np.nan
    for end in (12, 36):
        starts = np.broadcast_to(np.isin(times, (3, end))[:, None], mask.shape)
        came, wanted = (
            of_sines(x, state, before, mask, starts, form) for x in (tuple(broken), taken)
        )
        others = (times < 3) | (times >= end)

        def kept(found, others=others):
            (d_taken, d_state), (final, ys) = found
            steps = jax.tree.map(lambda a: np.asarray(a)[others], (d_taken, ys))
            return steps, d_state, final, np.asarray(ys)[3:5]

        assert cases.error(kept(came), kept(wanted)) < 1e-6
        last = end if operand else 6  # of no q, one step alone is not read
        assert np.isnan(np.asarray(came[1][1])[6 if operand else 5 : last]).all()


@pytest.mark.usefixtures("x64")
def test_transforms():
    """Forward mode, second derivatives and ``vmap`` are those of the scan of the step."""
    e = cases.example(cases.CELLS["rwkv7"], cases.Shape(3, (2,), 2, 4))

    def loss_by(name):
        def loss(params, xs):
            out = jaxrnn.unroll(
                e.cell, params, xs, e.state, mask=e.mask, starts=e.starts, implementation=name
            )
            return sum(jnp.sin(a).sum() for a in jax.tree.leaves(out))

        return loss

    each = six(weights=(0, None), data=(None, 0))
    *others, wanted = (
        ran({which: apply(loss_by(name)) for which, apply in each.items()}, e.params, e.xs)
        for name in (*KERNEL, "xla", "reference")
    )
    for which in each:
        for came in others:
            assert cases.error(came[which][0], wanted[which][0]) < 1e-11, which


@pytest.mark.usefixtures("x64")
def test_the_inverse():
    """It is exact where the powers of the matrix are large: entries near 2 of one sign."""
    exact = functools.partial(jnp.matmul, precision="highest")
    a = np.tril(np.random.default_rng(0).uniform(-2, 0, (3, 32, 32)), -1)
    came = np.asarray(jax.jit(jax.vmap(functools.partial(inverse, exact)))(a))
    assert (np.triu(came, 1) == 0).all()
    assert np.abs((np.eye(32) - a) @ came - np.eye(32)).max() < 1e-10 * np.abs(came).max()


@pytest.mark.parametrize("decay", (1, 64))
def test_memory_grows_with_the_values_and_not_with_the_states(decay):
    """The gradient's: the states of all steps would take 16 MB."""
    steps, width = 1024, 64
    shape = jax.ShapeDtypeStruct((steps, 1, 1, width), "float32")
    state = jax.ShapeDtypeStruct((1, 1, width, width), "float32")
    taken = (shape,) * 3 + (jax.ShapeDtypeStruct((steps, 1, 1, decay), "float32"),) + (shape,) * 2
    loss = lambda taken, state: delta_rule(taken, state)[1].sum()
    compiled = jax.jit(jax.grad(loss)).lower(taken, state).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < steps * width * width * 4 / 2


def test_it_says_what_it_runs_on():
    cell = jaxrnn.gated_delta_net(8, heads=2, key=3)
    params = cell.init(jax.random.key(0), 3)
    (choice,) = jaxrnn.explain(cell, params, jnp.ones((5, 2, 3)), platform="cpu").choices
    assert choice.operation == "delta_rule T=5 B=(2,) N=2 D=3 E=4 float32"
    everyone = {"cpu", "xla", "reference"}
    assert choice.runs == (*KERNEL, "xla")[0]
    assert set(choice.others) == everyone - {choice.runs}
    with pytest.raises(ValueError, match="implementation: got 'tpu', but this operation has only"):
        jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)), implementation="tpu")


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="heads: got 3, want a divisor of hidden=8"):
        jaxrnn.delta_net(8, heads=3)
    with pytest.raises(ValueError, match="key: got 0"):
        jaxrnn.gla(8, key=0)
    with pytest.raises(ValueError, match="lower_bound: got 1, want a number from 0 to below 1"):
        jaxrnn.hgrn2(8, lower_bound=1)
    with pytest.raises(ValueError, match="writes: got 0"):
        jaxrnn.delta_product(8, writes=0)


@pytest.mark.usefixtures("x64")
def test_one_write_is_the_negative_delta_net():
    product, net = (
        jaxrnn.delta_product(4, heads=2, writes=1),
        jaxrnn.delta_net(4, heads=2, negative=True),
    )
    params = net.init(jax.random.key(0), 3)
    q, k = params["qk"][:, 0], params["qk"][:, 1:]
    same = {"q": q, "k": k, "v": params["v"][:, None], "u": params["u"][:, None]}
    xs = np.random.default_rng(0).normal(size=(6, 2, 3))
    wanted = jaxrnn.unroll(net, params, xs)
    assert cases.error(jaxrnn.unroll(product, same, xs), wanted) < 1e-14


def test_reflections_count_modulo_two():
    """One number, which a one turns over and a zero leaves: parity of a thousand bits."""
    cell = jaxrnn.delta_net(1, heads=1, negative=True)
    bits = np.random.default_rng(0).integers(0, 2, 1000)
    xs = np.stack([bits, np.ones(1000)], 1).astype("float32")
    params = {
        "qk": np.float32([[[0], [0]], [[100], [100]]]),  # always the same key
        "v": np.float32([[0], [1]]),
        "u": np.float32([[100], [-50]]),  # beta is 2 at a one, 0 at a zero
    }
    ys = np.asarray(jaxrnn.unroll(cell, params, xs)[1])[:, 0]
    odd = np.cumsum(bits) % 2 == 1
    most = ys.max()
    assert most > 1 and (np.abs(ys[odd] - most) < 1e-3).all() and (np.abs(ys[~odd]) < 1e-3).all()
