"""PyTorch's numbers in float64, with its weights: outputs, final states and all gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn

torch = pytest.importorskip("torch")
rnn = torch.nn.utils.rnn
pytestmark = pytest.mark.usefixtures("x64")

T, B, H, INPUTS = 7, 3, 4, 5
LENGTHS = [4, 7, 1]
KINDS = {  # PyTorch's module, our cell
    "tanh": (functools.partial(torch.nn.RNN, nonlinearity="tanh"), jaxrnn.elman(H)),
    "relu": (
        functools.partial(torch.nn.RNN, nonlinearity="relu"),
        jaxrnn.elman(H, activation="relu"),
    ),
    "lstm": (torch.nn.LSTM, jaxrnn.lstm(H)),
    "gru": (torch.nn.GRU, jaxrnn.gru(H)),
}


class Pair:
    """A module of PyTorch's and our cell of the same sizes."""

    def __init__(self, kind, layers, both):
        make, cell = KINDS[kind]
        torch.manual_seed(0)
        self.module = make(INPUTS, H, num_layers=layers, bidirectional=both, dtype=torch.float64)
        self.cell = jaxrnn.stack(*[jaxrnn.bidirectional(cell) if both else cell] * layers)
        self.layers, self.both = layers, both
        self.lstm, self.gru = kind == "lstm", kind == "gru"
        self.weights = {name: array(p) for name, p in self.module.named_parameters()}

    def params(self, weights):
        """PyTorch's weights [G * H, I] by name as our parameters."""

        def one(end):
            names = (f"{name}_{end}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            w, r, b, rb = (weights[name] for name in names)
            w, r = (m.reshape(-1, H, m.shape[1]).transpose(2, 0, 1) for m in (w, r))
            b, rb = b.reshape(-1, H), rb.reshape(-1, H)
            if self.gru:
                return {"w": w, "r": r, "b": b.at[:2].add(rb[:2]), "rb": rb[2]}
            return {"w": w, "r": r, "b": b + rb}

        def layer(i):
            if not self.both:
                return one(f"l{i}")
            return {"forward": one(f"l{i}"), "backward": one(f"l{i}_reverse")}

        return {str(i): layer(i) for i in range(self.layers)}

    def run_torch(self, xs, state, lengths):
        """xs [T, B, I], state [h or h and c, layers * directions, B, H] -> (ys, final state)."""
        xs = xs if lengths is None else rnn.pack_padded_sequence(xs, lengths, enforce_sorted=False)
        if state is not None:
            state = tuple(state) if self.lstm else state[0]
        ys, final = self.module(xs, state)
        ys = ys if lengths is None else rnn.pad_packed_sequence(ys, total_length=T)[0]
        return ys, torch.stack(final if self.lstm else [final])

    def run(self, weights, xs, state, lengths):
        """The same on our cell."""
        params = self.params(weights)
        tree = jax.tree.structure(self.cell.initial_state(params, (B,)))
        if state is not None:
            state = tree.unflatten(state.swapaxes(0, 1).reshape(-1, B, H))
        final, ys = jaxrnn.unroll(self.cell, params, xs, state, lengths=lengths)
        final = jnp.stack(jax.tree.leaves(final)).reshape(-1, 1 + self.lstm, B, H)
        return ys, final.swapaxes(0, 1)


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


@pytest.mark.parametrize("given", [False, True], ids=["plain", "state and lengths"])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_same_numbers(kind, layers, both, given):
    pair = Pair(kind, layers, both)
    xs = torch.randn(T, B, INPUTS, dtype=torch.float64, requires_grad=True)
    shape = (1 + pair.lstm, layers * (1 + both), B, H)
    state = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    state, lengths = (state, torch.tensor(LENGTHS)) if given else (None, None)

    truths = pair.run_torch(xs, state, lengths)
    cotangents = [torch.randn_like(truth) for truth in truths]
    torch.autograd.backward(truths, cotangents)

    @jax.jit
    def run(weights, xs, state, lengths, cotangents):
        ours = lambda *moving: pair.run(*moving, lengths)  # noqa: E731
        came, pull = jax.vjp(ours, weights, xs, state)
        return came, pull(cotangents)

    arrays = jax.tree.map(array, (xs, state, lengths, tuple(cotangents)))
    came, gradients = run(pair.weights, *arrays)
    wanted = ({name: p.grad for name, p in pair.module.named_parameters()}, xs.grad)
    wanted += (state.grad if given else None,)
    assert error((came, gradients), jax.tree.map(array, (truths, wanted))) < 1e-12


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_same_training(kind):
    """Fifty steps of gradient descent from the same weights."""
    pair = Pair(kind, layers=2, both=True)
    xs, target = (torch.randn(T, B, size, dtype=torch.float64) for size in (INPUTS, 2 * H))
    optimizer = torch.optim.SGD(pair.module.parameters(), lr=0.5)
    truths = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = ((pair.module(xs)[0] - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        truths.append(loss.item())

    @jax.jit
    def step(weights, xs, target):
        def loss(weights):
            return ((pair.run(weights, xs, None, None)[0] - target) ** 2).mean()

        value, gradient = jax.value_and_grad(loss)(weights)
        return jax.tree.map(lambda p, d: p - 0.5 * d, weights, gradient), value

    weights, losses = pair.weights, []
    for _ in range(50):
        weights, loss = step(weights, array(xs), array(target))
        losses.append(float(loss))
    assert truths[-1] < 0.9 * truths[0]
    np.testing.assert_allclose(losses, truths, rtol=1e-10)
