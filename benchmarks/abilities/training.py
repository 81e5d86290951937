"""A small model of one cell, trained on short sequences of a task and asked on longer ones."""

import functools
import math

import jax
import jax.numpy as jnp
import optax

import jaxrnn
from benchmarks.abilities.tasks import CLOSE, TASKS
from benchmarks.shared import zoo

SHORT, LENGTHS = 40, (20, 40, 80, 160, 320)  # trained, and asked
BATCH, CHUNK, ASKED, ENOUGH = 64, 50, 256, 0.9
PARTS = 5  # of the length trained: where several lengths are, they are its fifths
LEARNT = 1e-3  # a loss that no longer training improves
EXACT = CLOSE**2 / 16  # the same of numbers: four standard deviations are within what is right
VARIANTS = {
    "delta_net_negative": functools.partial(jaxrnn.delta_net, negative=True),
    "gated_delta_net_negative": functools.partial(jaxrnn.gated_delta_net, negative=True),
}


def cells():
    """The names of all cells there are."""
    return sorted({*zoo.of_one_array(), *VARIANTS})


def model(name, task, hidden):
    """What learns the task: the cell between two projections."""
    cell = VARIANTS[name](hidden) if name in VARIANTS else zoo.cell(name, hidden)
    short = [jaxrnn.conv1d(hidden, kernel=4, depthwise=True)] if task.convolved else []
    return jaxrnn.stack(jaxrnn.project(hidden), *short, cell, jaxrnn.project(task.outputs))


def run(name, which, seed, *, hidden, steps, rate, progress=lambda steps, loss: None):
    """A row of the results: see ``abilities.NOTES``."""
    task, net, rule, some = _programs(name, which, hidden, steps, rate)
    key = jax.random.key(seed)
    params = net.init(jax.random.fold_in(key, 0), task.inputs)
    state, done, loss = rule.init(params), 0, math.inf
    while done < steps and loss > (EXACT if task.numbers else LEARNT):
        params, state, losses = some(params, state, jax.random.fold_in(key, done + 1))
        done, loss = done + CHUNK, float(losses.mean())
        progress(done, loss)
    right = {str(length): float(share(net, task, params, length)) for length in LENGTHS}
    cell, own = net.made.args[-2], params[str(len(params) - 2)]
    sizes = _sizes(cell, own, hidden)
    jax.clear_caches()  # hundreds of runs would leave no memory maps for another program
    return {
        "task": which,
        "cell": name,
        "seed": seed,
        "steps": done,
        "loss": loss,
        "right": right,
        "longest": longest(right),
        "parameters": _count(own),
        **sizes,
    }


def longest(right):
    """The greatest length with enough right answers, there and at all shorter ones; or 0."""
    found = 0
    for length, part in sorted((int(n), part) for n, part in right.items()):
        if part < ENOUGH:
            break
        found = length
    return found


def _programs(name, which, hidden, steps, rate):
    """The task, the model, the rule of its optimizer, and some steps of training."""
    task = TASKS[which]()
    net = model(name, task, hidden)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20 + 1, steps)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    lengths = [SHORT * (n + 1) // PARTS for n in range(PARTS)] if task.varied else [SHORT]

    def loss(params, key, length):
        xs, wanted, asked = _batch(task, key, BATCH, length)
        answers = jaxrnn.unroll(net, params, xs)[1]
        if task.numbers:
            errors = (answers[..., 0] - wanted) ** 2
        else:
            errors = optax.softmax_cross_entropy_with_integer_labels(answers, wanted)
        return (errors * asked).sum() / asked.sum()

    @jax.jit
    def some(params, state, key):
        def one(carry, keys):
            values = []
            for length, key in zip(lengths, keys, strict=True):
                params, state = carry
                value, gradient = jax.value_and_grad(loss)(params, key, length)
                updates, state = rule.update(gradient, state)
                carry = optax.apply_updates(params, updates), state
                values.append(value)
            return carry, jnp.stack(values)

        keys = jax.random.split(key, (CHUNK // len(lengths), len(lengths)))
        (params, state), losses = jax.lax.scan(one, (params, state), keys)
        return params, state, losses

    return task, net, rule, some


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def share(net, task, params, length):
    """How many of the answers are right, of sequences that are the same for every model."""
    xs, wanted, asked = _batch(task, jax.random.key(length), ASKED, length)
    answers = jaxrnn.unroll(net, params, xs)[1]
    if task.numbers:
        correct = jnp.abs(answers[..., 0] - wanted) < CLOSE
    else:
        correct = answers.argmax(-1) == wanted
    if task.last:
        asked &= asked[::-1].cumsum(0)[::-1] == 1
    return (correct & asked).sum() / asked.sum()


def _batch(task, key, rows, length):
    """xs [T, B, I], wanted and asked [T, B]."""
    make = functools.partial(task.make, length=length)
    return jax.vmap(make, out_axes=1)(jax.random.split(key, rows))


def _count(tree):
    return sum(math.prod(a.shape) for a in jax.tree.leaves(tree))


def _sizes(cell, params, features):
    """Numbers in the state of a row, and floating-point operations of a step, as XLA counts."""
    state = cell.initial_state(params, ())
    x = jax.ShapeDtypeStruct((features,), "float32")
    cost = jax.jit(cell.step).lower(params, state, x).compile().cost_analysis()
    return {"state": _count(state), "flops": float(cost["flops"])}
