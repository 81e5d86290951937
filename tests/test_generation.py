"""The closed loop, against a loop in NumPy; and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn

KEY = jax.random.key(0)
B, S, STEPS, H = 4, 3, 6, 3
RNG = np.random.default_rng(0)
CELL = jaxrnn.elman(H)
TEACHER, PROMPT = RNG.normal(size=(STEPS, B, H)), RNG.normal(size=(S, B, H))
FORCED = RNG.random((STEPS, B)) < 0.4
LENGTHS = np.array([3, 1, 2, 3])


def follow(key, y):
    return 2 * y


def ends(x):
    return x[..., 0] > 0.9


def truth(params, lengths, forced, stops):
    """Row by row, step by step: the last state, inputs, outputs and lengths."""
    w, r, b = (np.asarray(params[name]) for name in "wrb")
    states, xs, ys, counts = [], np.zeros((STEPS, B, H)), np.zeros((STEPS, B, H)), []
    for row in range(B):
        h, x, count = np.zeros(H), PROMPT[lengths[row] - 1, row], 0
        step = lambda h, x: np.tanh(x @ w[:, 0] + h @ r[:, 0] + b[0])
        for t in range(lengths[row] - 1):
            h = step(h, PROMPT[t, row])
        for t in range(STEPS):
            h = step(h, x)
            x = TEACHER[t, row] if forced[t, row] else 2 * h
            xs[t, row], ys[t, row], count = x, h, count + 1
            if stops and x[0] > 0.9:
                break
        states.append(h)
        counts.append(count)
    return np.stack(states), xs, ys, np.array(counts)


def run(params, lengths=None, forced=None, **options):
    options |= {} if forced is None else {"teacher": jnp.asarray(TEACHER), "forced": forced}
    return jaxrnn.generate(
        CELL, params, jnp.asarray(PROMPT), STEPS, follow, lengths=lengths, **options
    )


@pytest.mark.usefixtures("x64")
def test_the_loop():
    """Prompts of other lengths, forced inputs and stops, and none of these."""
    params = CELL.init(KEY, H)
    params = params | {"b": jnp.asarray(RNG.normal(size=(1, H)))}
    for given in (
        {"lengths": LENGTHS, "forced": FORCED, "stop": ends},
        {"forced": FORCED},
        {"stop": ends},
    ):
        made = run(params, **given)
        lengths, forced = given.get("lengths", np.full(B, S)), given.get("forced", FORCED & False)
        wanted = truth(params, lengths, forced, "stop" in given)
        assert error((made.state[0], *made[1:3]), wanted[:3]) < 1e-12
        assert (np.asarray(made.lengths) == wanted[3]).all() and made.lengths.dtype == jnp.int32
        assert ("stop" in given) == (made.lengths < STEPS).any()


@pytest.mark.usefixtures("x64")
def test_forced_throughout_it_is_unroll():
    """And so is the gradient; NaN in inputs that are not read reaches nothing."""
    params = CELL.init(KEY, H)
    weights = RNG.normal(size=(STEPS, B, H))
    all_xs = np.concatenate([PROMPT, TEACHER])[:-1]

    def forced(params):
        return (run(params, forced=FORCED | True).ys * weights).sum()

    def plain(params):
        ys = jaxrnn.unroll(CELL, params, jnp.asarray(all_xs))[1]
        return (ys[S - 1 :] * weights).sum()

    came, wanted = jax.value_and_grad(forced)(params), jax.value_and_grad(plain)(params)
    assert error(came, wanted) < 1e-12
    far = jnp.asarray(np.where(FORCED[..., None], TEACHER, np.nan))
    part = lambda params, teacher: jaxrnn.generate(
        CELL, params, jnp.asarray(PROMPT), STEPS, follow, teacher=teacher, forced=FORCED
    ).ys.sum()
    gradient = jax.grad(part)(params, far)
    assert error(gradient, jax.grad(part)(params, jnp.asarray(TEACHER))) == 0


READER = jaxrnn.stack(
    jaxrnn.embedding(5, 4), jaxrnn.dropout(0.5), jaxrnn.gru(4), jaxrnn.project(5)
)
PARAMS = jax.tree.map(lambda a: 3 * a, READER.init(KEY, None))
TOKENS = jnp.asarray(RNG.integers(5, size=(S, B)), jnp.int32)
DRAW = jaxrnn.sample()


def test_tokens():
    """Two calls go on from each other; a token stops; a prompt may be one step of no batch."""
    likeliest = jaxrnn.sample(temperature=0)
    whole = jaxrnn.generate(READER, PARAMS, TOKENS, 5, likeliest)
    first = jaxrnn.generate(READER, PARAMS, TOKENS, 2, likeliest)
    rest = jaxrnn.generate(READER, PARAMS, first.xs[-1:], 3, likeliest, state=first.state)
    assert (jnp.concatenate([first.xs, rest.xs]) == whole.xs).all()
    assert error(rest.ys, whole.ys[2:]) < 1e-6 and (whole.xs == whole.ys.argmax(-1)).all()
    drawn = jaxrnn.generate(READER, PARAMS, TOKENS, 30, DRAW, key=KEY, stop=4)
    for row, length in enumerate(drawn.lengths.tolist()):
        xs = drawn.xs[:, row]
        assert length == 30 or xs[length - 1] == 4
        assert (xs[: length - 1] != 4).all() and (xs[length:] == 0).all()
        assert (drawn.ys[length:, row] == 0).all()
    assert (drawn.lengths < 30).any()
    alone = jaxrnn.generate(READER, PARAMS, TOKENS[:, :1], 30, DRAW, key=KEY, stop=4)
    assert (alone.xs[:, 0] == drawn.xs[:, 0]).all()  # whatever the rows beside it
    assert jaxrnn.generate(READER, PARAMS, TOKENS[:1, 0], 2, likeliest).xs.shape == (2,)
    even = jaxrnn.generate(READER, PARAMS, TOKENS, 30, lambda key, y: DRAW(key, 0 * y), key=KEY)
    assert all(len(set(row.tolist())) == 5 for row in even.xs.T)  # another draw at each step


def test_training():
    """The cell draws as in ``unroll``, in the prompt and after it."""
    teacher = jnp.asarray(RNG.integers(5, size=(4, B)), jnp.int32)
    forced = {"teacher": teacher, "forced": jnp.ones((4, B), bool)}
    made = jaxrnn.generate(
        READER, PARAMS, TOKENS, 4, jaxrnn.sample(0), key=KEY, deterministic=False, **forced
    )
    tokens = jnp.concatenate([TOKENS, teacher])[:-1]
    inner = jax.random.fold_in(KEY, 0)
    assert error(made.ys, jaxrnn.unroll(READER, PARAMS, tokens, key=inner)[1][S - 1 :]) < 1e-6
    assert error(made.ys, jaxrnn.unroll(READER, PARAMS, tokens)[1][S - 1 :]) > 0.1


def test_it_compiles_once():
    calls = []

    def choose(key, y):
        calls.append(key)
        return y.argmax(-1).astype(jnp.int32)

    for tokens in (TOKENS, TOKENS + 0):
        jaxrnn.generate(READER, PARAMS, tokens, 4, choose)
    traced = len(calls)
    jaxrnn.generate(READER, PARAMS, TOKENS, 4, choose)
    assert len(calls) == traced and set(calls) == {None}
    assert jaxrnn.sample(0.5, 3) == jaxrnn.sample(0.5, top_k=3) != jaxrnn.sample(0.5)


def test_what_is_drawn():
    """The frequencies of 20,000 rows are those of the softmax; each row has its own draw."""
    logits = np.array([1.0, -0.5, 2.0, 0.3, 1.2], np.float32)
    rows = jnp.asarray(np.broadcast_to(logits, (20_000, 5)))
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3)):
        tokens = jaxrnn.sample(temperature, top_k)(KEY, rows)
        weights = np.exp(logits / temperature)
        if top_k:
            weights[np.argsort(logits)[:-top_k]] = 0
        came = np.bincount(tokens, minlength=5) / len(tokens)
        assert abs(came - weights / weights.sum()).max() < 0.015
        assert ((came > 0) == (weights > 0)).all() and tokens.dtype == jnp.int32
    narrow = jaxrnn.sample()(KEY, rows[:100].astype("bfloat16").reshape(4, 25, 5))
    assert narrow.shape == (4, 25)
    assert (jaxrnn.sample(temperature=0)(None, rows[:2]) == 2).all()


def reader(*args, cell=READER, prompt=TOKENS, steps=4, choose=DRAW, **options):
    return lambda: jaxrnn.generate(cell, PARAMS, prompt, steps, choose, *args, **options)


FLAGS = jnp.ones((4, B), bool)
BAD = {
    "cell": (reader(cell=jaxrnn.gru), "cell: got gru, want a Cell"),
    "no key": (reader(), "key: got None, want a key: only temperature=0"),
    "key": (reader(key=3), "key: got 3, want one key"),
    "no prompt": (reader(prompt=TOKENS[:0]), "prompt: got S = 0 steps, want one or more"),
    "steps": (reader(steps=0), "steps: got 0, want 1 or more"),
    "choose": (reader(choose=3), "choose: got 3, want a function (key, y) -> x"),
    "chosen": (
        reader(choose=lambda key, y: y),
        "choose: got float32[4, 5], want int32[4], as a step",
    ),
    "lengths of 0": (reader(lengths=jnp.zeros(B, int)), "lengths: got 0, want 1 or more"),
    "lengths": (reader(lengths=jnp.full(B, 9)), "lengths: got values from 9 to 9"),
    "teacher alone": (reader(teacher=TOKENS), "teacher, forced: got one of them, want both"),
    "forced": (
        reader(key=KEY, teacher=TOKENS, forced=FLAGS[1:]),
        "forced: got shape (3, 4), want [steps",
    ),
    "teacher": (
        reader(key=KEY, teacher=FLAGS, forced=FLAGS),
        "teacher: got bool[4], want int32[4]",
    ),
    "stop": (reader(key=KEY, stop=lambda x: x), "stop: got int32, want bool"),
    "training without a key": (
        reader(choose=jaxrnn.sample(0), deterministic=False),
        "key: got None and deterministic=",
    ),
    "bidirectional": (
        reader(cell=jaxrnn.bidirectional(READER), choose=jaxrnn.sample(0)),
        "params: got ['0'",
    ),
    "temperature": (lambda: jaxrnn.sample(-1.0), "temperature: got -1.0, want 0 or more"),
    "temperature's type": (lambda: jaxrnn.sample("hot"), "temperature: got 'hot', want a number"),
    "top_k": (lambda: jaxrnn.sample(top_k=0), "top_k: got 0, want 1 or more"),
    "top_k of less": (
        lambda: jaxrnn.sample(top_k=6)(KEY, jnp.ones(5)),
        "top_k: got 6, want 5 at most",
    ),
    "logits": (lambda: DRAW(KEY, TOKENS), "logits: got int32, want a floating type"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_is_wrong(name):
    call, text = BAD[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert text in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
