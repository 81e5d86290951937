"""PyTorch's LSTM with ``proj_size``: its numbers in float64, with its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn

torch = pytest.importorskip("torch")
rnn = torch.nn.utils.rnn
pytestmark = pytest.mark.usefixtures("x64")

T, B, INPUTS, H, P = 7, 3, 5, 4, 3
LENGTHS = [4, 7, 1]


def params(weights):
    """PyTorch's weights [G * H, I] by name as our parameters."""
    w, r = (weights[name].reshape(4, H, -1).transpose(2, 0, 1) for name in ("w_ih", "w_hh"))
    bias = (weights["b_ih"] + weights["b_hh"]).reshape(4, H)
    return {"w": w, "r": r, "b": bias, "p": weights["w_hr"].T}


@pytest.mark.parametrize("lengths", (None, LENGTHS))
def test_lstm_with_proj_size(lengths):
    torch.manual_seed(0)
    module = torch.nn.LSTM(INPUTS, H, proj_size=P, dtype=torch.float64)
    named = {
        name.removesuffix("_l0").replace("weight", "w").replace("bias", "b"): p
        for name, p in module.named_parameters()
    }
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s) for s in ((T, B, INPUTS), (1, B, P), (1, B, H))]
    cotangents = [rng.normal(size=s) for s in ((T, B, P), (1, B, P), (1, B, H))]

    xs, h, c = (torch.tensor(a, requires_grad=True) for a in arrays)
    given = xs
    if lengths is not None:
        given = rnn.pack_padded_sequence(xs, lengths, enforce_sorted=False)
    ys, (hn, cn) = module(given, (h, c))
    if lengths is not None:
        ys = rnn.pad_packed_sequence(ys, total_length=T)[0]
    total = sum((a * torch.tensor(d)).sum() for a, d in zip((ys, hn, cn), cotangents))
    gradients = torch.autograd.grad(total, (*named.values(), xs, h, c))
    wanted = [a.detach().numpy() for a in (ys, hn, cn, *gradients)]

    def run(weights, xs, h, c):
        (h, c), ys = jaxrnn.unroll(
            jaxrnn.lstm(H, projection=P),
            params(weights),
            xs,
            (h[0], c[0]),
            lengths=None if lengths is None else jnp.array(lengths),
        )
        return ys, h[None], c[None]

    weights = {name: jnp.array(p.detach().numpy()) for name, p in named.items()}
    came, pull = jax.vjp(run, weights, *map(jnp.array, arrays))
    weight_gradients, *others = pull(tuple(map(jnp.array, cotangents)))
    came = [*came, *(weight_gradients[name] for name in named), *others]
    assert error(came, wanted) < 1e-12


def test_rms_norm():
    """Also with groups, each of which is a norm of its own."""
    x, scale = np.random.default_rng(0).normal(size=(2, T, 6))[:, :, :6], np.arange(1.0, 7)
    module = torch.nn.RMSNorm(6, eps=1e-3, dtype=torch.float64)
    module.weight.data = torch.tensor(scale)
    with torch.no_grad():
        whole = module(torch.tensor(x)).numpy()
        each = torch.nn.functional.rms_norm(torch.tensor(x.reshape(2, T, 3, 2)), (2,), eps=1e-3)
    run = lambda **options: jaxrnn.unroll(jaxrnn.rms_norm(**options), {"scale": scale}, x)[1]
    assert error(run(epsilon=1e-3), whole) < 1e-14
    assert error(run(epsilon=1e-3, groups=3), each.numpy().reshape(x.shape) * scale) < 1e-14
    with pytest.raises(ValueError, match="groups: got 4, want a divisor of I=6"):
        run(groups=4)
