"""Tags: shown by `trace`, selected by policies of `jax.checkpoint`, and unknown to kernels."""

import contextlib

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulated import made
from jax.ad_checkpoint import checkpoint_name, print_saved_residuals
from jax.interpreters import partial_eval
from transforms import equations

import jaxrnn
from jaxrnn._src.core.tags import has_tags, untagged

KEY = jax.random.key(0)
ROW = jnp.array([0.5, -1.0, 2.0])


def plain(a, b):
    """One value of each kind of call and loop."""
    c = jax.jit(lambda a: jnp.tanh(a * b))(a)
    (c, d), _ = jax.lax.scan(lambda s, _: ((s[1], s[0] * s[1]), None), (c, b), length=2)
    same = jax.lax.cond(True, lambda a: jnp.sin(a), jnp.cos, a)
    return {"sum": jnp.where(a > 0, c, d), "same": same}


def with_tags(a, b):
    c = jax.jit(lambda a: checkpoint_name(jnp.tanh(checkpoint_name(a, "a") * b), "c"))(a)
    body = lambda s, _: ((s[1], checkpoint_name(s[0] * s[1], "inside")), None)
    (c, d), _ = jax.lax.scan(body, (c, b), length=2)
    same = jax.lax.cond(True, lambda a: checkpoint_name(jnp.sin(a), "s"), jnp.cos, a)
    return {"sum": checkpoint_name(jnp.where(a > 0, c, d), "sum"), "same": same}


def test_without_tags_it_is_the_same_program():
    """The same operations in the same order, and so the same numbers and derivatives."""
    bare = untagged(with_tags)
    assert has_tags(jax.make_jaxpr(with_tags)(ROW, ROW))
    assert str(jax.make_jaxpr(bare)(ROW, ROW)) == str(jax.make_jaxpr(plain)(ROW, ROW))
    assert str(jax.make_jaxpr(bare)(ROW, b=ROW)) == str(jax.make_jaxpr(plain)(ROW, b=ROW))
    assert untagged(with_tags) is bare and bare.__name__ == "with_tags"


def tagged_update(state, x, r):
    """A user's, by hand: what enters the gates is tagged too."""
    (h,), (xf, xn), (rf, rn) = state, x, r
    f = jax.nn.sigmoid(checkpoint_name(xf, "xf") + rf)
    return (checkpoint_name(h + f * (jnp.tanh(xn + f * rn) - h), "my_cell.h"),)


def untagged_update(state, x, r):
    (h,), (xf, xn), (rf, rn) = state, x, r
    f = jax.nn.sigmoid(xf + rf)
    return (h + f * (jnp.tanh(xn + f * rn) - h),)


def test_values_and_gradients_do_not_change():
    cells = [jaxrnn.gated(u, gates=("f", "n"))(4) for u in (tagged_update, untagged_update)]
    params = cells[0].init(KEY, 3)
    xs = np.random.default_rng(0).normal(size=(5, 2, 3)).astype("float32")

    @jax.jit
    def results(params, xs):
        pairs = (jax.vjp(lambda p, x, c=c: jaxrnn.unroll(c, p, x), params, xs) for c in cells)
        return [(out, pull(cases.cotangents(out))) for out, pull in pairs]

    came, wanted = results(params, xs)
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (came, wanted)), strict=True))


class Chip:
    def __init__(self, platform, device_kind):
        self.platform, self.device_kind = platform, device_kind


CHIPS = {"tpu": Chip("tpu", "TPU v6 lite"), "gpu": Chip("gpu", "NVIDIA H200")}
CHIPS |= {} if cases.NO_KERNEL else {"cpu": "cpu"}
FUSED = [
    jaxrnn.elman(128),
    jaxrnn.lstm(128),
    jaxrnn.lstm(128, peepholes=True, coupled=True),
    jaxrnn.gru(128),
    jaxrnn.mgu(128),
    jaxrnn.ugrnn(128),
    jaxrnn.ligru(128),
    jaxrnn.janet(128),
    jaxrnn.slstm(128),
    jaxrnn.leaky(128, alpha=0.5),
    jaxrnn.irnn(128),
    jaxrnn.ran(128),
    jaxrnn.atr(128),
    jaxrnn.cfn(128),
    jaxrnn.star(128),
    jaxrnn.fast_grnn(128),
    jaxrnn.gated(tagged_update, gates=("f", "n"))(128),
]


@pytest.mark.parametrize("cell", FUSED, ids=str)
def test_tagged_updates_keep_their_kernels(cell):
    params = jax.eval_shape(lambda: cell.init(KEY, 64))
    xs = jax.ShapeDtypeStruct((32, 16, 64), jnp.float32)
    first = lambda params, xs: cell.step(params, cell.initial_state(params, (16,)), xs[0])
    assert has_tags(jax.make_jaxpr(first)(params, xs))
    for name, chip in CHIPS.items():
        with made() if name == "gpu" else contextlib.nullcontext():  # also without a compiler
            (choice,) = jaxrnn.explain(cell, params, xs, platform=chip).choices
        assert choice.runs == name, choice.others


def test_a_tagged_cell_is_lowered_for_a_tpu():
    """Forward and backward, to Mosaic's kernels; and no call is left to a scan."""
    cell = jaxrnn.lstm(128)
    params = jax.eval_shape(lambda: cell.init(KEY, 64))
    xs = jax.ShapeDtypeStruct((32, 16, 64), jnp.bfloat16)
    loss = lambda params, xs: jaxrnn.unroll(cell, params, xs)[1].sum()
    traced = jax.jit(jax.grad(loss)).trace(params, xs)
    lowered = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert lowered.count("tpu_custom_call") == 2 and "stablehlo.while" not in lowered


def test_a_policy_of_checkpoint_selects_by_name(capsys):
    cell = jaxrnn.lstm(4)
    params, x = cell.init(KEY, 3), jnp.ones(3)
    state = cell.initial_state(params, ())
    policy = jax.checkpoint_policies.save_only_these_names("jaxrnn.lstm.f")
    step = jax.checkpoint(lambda *args: cell.step(*args)[1].sum(), policy=policy)
    print_saved_residuals(step, params, state, x)
    named = [line for line in capsys.readouterr().out.splitlines() if "named" in line]
    assert len(named) == 1 and "'jaxrnn.lstm.f'" in named[0]


def test_the_reference_keeps_its_tags():
    cell = jaxrnn.gru(4)
    params, xs = cell.init(KEY, 3), jnp.ones((5, 3))

    def names(implementation):
        run = lambda p, x: jaxrnn.unroll(cell, p, x, implementation=implementation)
        found = equations(jax.make_jaxpr(run)(params, xs).jaxpr)
        return {eqn.params["name"] for eqn in found if eqn.primitive.name == "name"}

    assert names("reference") == {f"jaxrnn.gru.{name}" for name in "rznh"}
    assert not names("xla")


DRAWS = {
    jaxrnn.dropout(0.5): True,
    jaxrnn.dropout(0.0): False,
    jaxrnn.stack(jaxrnn.gru(3), jaxrnn.dropout(0.5), jaxrnn.elman(3)): True,
    jaxrnn.stack(jaxrnn.gru(3), jaxrnn.residual(jaxrnn.elman(3))): False,
    jaxrnn.residual(jaxrnn.parallel(jaxrnn.gru(3), jaxrnn.dropout(0.5), merge="sum")): True,
    jaxrnn.highway(jaxrnn.dropout(0.5)): True,
    jaxrnn.bidirectional(jaxrnn.elman(3), jaxrnn.dropout(0.5)): True,
    jaxrnn.bidirectional(jaxrnn.elman(3)): False,
    jaxrnn.zoneout(jaxrnn.gru(3), 0.5): True,
    jaxrnn.zoneout(jaxrnn.lstm(3), (0.0, 0.5)): True,
    jaxrnn.zoneout(jaxrnn.gru(3), 0.0): False,
    jaxrnn.recurrent_dropout(jaxrnn.lstm(3), 0.5): True,
    jaxrnn.recurrent_dropout(jaxrnn.lstm(3), 0.0): False,
    jaxrnn.variational_dropout(jaxrnn.gru(3), 0.5): True,
    jaxrnn.weight_dropout(jaxrnn.gru(3), 0.5): True,
    jaxrnn.weight_dropout(jaxrnn.gru(3), 0.0): False,
    jaxrnn.initialized(jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.gru(3)), "torch"): True,
    jaxrnn.learned_state(jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.gru(3))): True,
    jaxrnn.truncated(jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.gru(3)), 2): True,
    jaxrnn.attentive(jaxrnn.gru(3), 2): False,
    jaxrnn.attentive(jaxrnn.stack(jaxrnn.gru(3), jaxrnn.dropout(0.5)), 2): True,
    jaxrnn.attentive(jaxrnn.stack(jaxrnn.gru(3), jaxrnn.dropout(0.5)), 2, score="general"): True,
    jaxrnn.int8(jaxrnn.stack(jaxrnn.gru(3), jaxrnn.dropout(0.5))): True,
    jaxrnn.online(jaxrnn.gru(3), "snap1"): False,
    jaxrnn.online(jaxrnn.gru(3), "uoro"): True,
    jaxrnn.leaky(3, alpha=0.5, signs=(1, 1, -1)): False,
    jaxrnn.with_params(jaxrnn.gru(3), lambda params: params): False,
    jaxrnn.with_params(jaxrnn.dropout(0.5), lambda params: params): True,
}


@pytest.mark.parametrize("cell", DRAWS, ids=str)
def test_a_cell_says_whether_it_draws(cell):
    """As its program says, in which results depend on the key or not."""

    def run(key, params, xs):
        return jaxrnn.unroll(cell, params, xs, key=key)

    params = jax.eval_shape(lambda: cell.init(KEY, 3))
    xs = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr = jax.make_jaxpr(run)(key, params, xs).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    assert cell.draws is DRAWS[cell] is used[0]


def test_a_cell_by_hand_says_whether_it_draws():
    cell = jaxrnn.cell(
        lambda key, n: {}, lambda p, batch: (), lambda params, state, x, key: (state, x)
    )
    assert cell.draws and not jaxrnn.cell(cell.init, cell.initial_state, lambda p, s, x: s).draws
    own = jaxrnn.Cell(cell.init, cell.initial_state, cell.step, cell.unroll, draws=True)
    assert own.draws and own != jaxrnn.Cell(*own._functions().values())
    rate = jaxrnn.with_params(jaxrnn.gru(3), lambda params, key: params)
    assert rate.draws


def test_names_of_gates_and_states():
    make = jaxrnn.gated(untagged_update, gates=("f", "n"), states=("level",), recurrent=("n", "f"))
    cell = make(4)
    assert cell.gated.form.recurrent == (1, 0) and cell.states == ("level",)
    assert jaxrnn.gated(untagged_update, gates=2)(4).states == ("h",)
    named = jaxrnn.gated(untagged_update, gates=["f", "n"])
    assert named == jaxrnn.gated(untagged_update, gates=("f", "n"))


def test_explain_names_gates_and_states():
    """Those of the cell that an operation is of, whatever the names of the cells around it."""
    cell = jaxrnn.stack(
        jaxrnn.residual(jaxrnn.lstm(4)),
        jaxrnn.bidirectional(jaxrnn.mgu(2), jaxrnn.lru(4), merge=lambda a, b: b),
        jaxrnn.dropout(0.5),
    )
    params = jax.eval_shape(lambda: cell.init(KEY, 4))
    xs = jax.ShapeDtypeStruct((5, 2, 4), jnp.float32)
    found = jaxrnn.explain(cell, params, xs)
    names = [(choice.gates, choice.states) for choice in found.choices]
    assert names == [(("i", "f", "g", "o"), ("h", "c")), (("f", "n"), ("h",)), ((), ("h",))]
    lines = str(found).splitlines()
    assert "    gates f n, states h" in lines and "    states h" in lines
