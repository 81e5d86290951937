"""LSTM and GRU with layer normalisation of what enters their gates."""

from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.cells.gru import gru_update
from jaxrnn._src.cells.lstm import lstm_update
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.layer_norm import normalised
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag


@constructor
def layer_norm_lstm(
    hidden: int, *, forget_bias: float = 1.0, per_gate: bool = False, epsilon: float = 1e-5
) -> Cell:
    """LSTM with layer normalisation (Ba et al. 2016, arXiv:1607.06450).

        a = LN(W x) * sw + LN(R h) * sr + b             LN(z) = (z - mean) / sqrt(variance + eps)
        i, f, o = sigmoid(a)      g = tanh(a_g)
        c = f * c + i * g         h = o * tanh(LN(c) * sc + bc)

    As in the paper and in Haste, what recurs is c as it is; TensorFlow Addons and PyTorch's
    ``custom_lstms`` carry LN(c) instead, and TensorFlow 1's ``LayerNormBasicLSTMCell`` normalises
    the sum W x + R h of each gate: other models.

    Args:
      hidden: H, the size of the state and the output.
      forget_bias: what the forget gate's bias begins at.
      per_gate: mean and variance are over the H units of each gate, not over all 4 H as in the
        paper.
      epsilon: added to the variance.

    Returns:
      A ``Cell``. State ``(h, c)``, each [..., H]; parameters ``w`` [I, 4, H], ``r`` [H, 4, H],
      ``b``, ``sw`` and ``sr`` [4, H], gates in the order i f g o, ``sc`` and ``bc`` [H].

    >>> cell = jaxrnn.layer_norm_lstm(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h, c), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, sorted(params)
    ((7, 3, 4), ['b', 'bc', 'r', 'sc', 'sr', 'sw', 'w'])
    """
    hidden = checks.size("hidden", hidden)
    gates = _Gates(hidden, (0.0, forget_bias, 0.0, 0.0), per_gate, epsilon)
    unit = {"sc": ((hidden,), param_spec.ones), "bc": ((hidden,), param_spec.zeros)}

    def step(others, state, x, dot):
        r = gates.recurrent(others, state, dot)
        _, c = lstm_update(state, x, r)
        o = tag("layer_norm_lstm.o", sigmoid(x[3] + r[3]))
        normal = normalised(c, others["sc"], others["bc"], epsilon=epsilon)
        h = tag("layer_norm_lstm.h", o * tanh(normal))
        return (h, c), h

    return lifted(
        gates.spec | unit,
        {"h": hidden, "c": hidden},
        gates.inputs,
        step,
        products=("r",),
        others=("sr", *unit),
    )


@constructor
def layer_norm_gru(hidden: int, *, per_gate: bool = False, epsilon: float = 1e-5) -> Cell:
    """GRU with layer normalisation (as in Haste, LMNT 2020, github.com/lmnt-com/haste).

        x_r, x_z, x_n = LN(W x) * sw + b     LN(z) = (z - mean) / sqrt(variance + eps)
        r_r, r_z, r_n = LN(R h) * sr
        r, z = sigmoid(x_r + r_r), sigmoid(x_z + r_z)
        n = tanh(x_n + r * (r_n + rb))       h = (1 - z) * n + z * h

    Haste's recurrent bias of r and z is in b.

    Args:
      hidden: H, the size of the state and the output.
      per_gate: mean and variance are over the H units of each gate, not over all 3 H as in Haste.
      epsilon: added to the variance.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 3, H], ``r`` [H, 3, H], ``b``,
      ``sw`` and ``sr`` [3, H], gates in the order r z n, and ``rb`` [H].

    >>> cell = jaxrnn.layer_norm_gru(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, sorted(params)
    ((7, 3, 4), ['b', 'r', 'rb', 'sr', 'sw', 'w'])
    """
    hidden = checks.size("hidden", hidden)
    gates = _Gates(hidden, (0.0, 0.0, 0.0), per_gate, epsilon)

    def step(others, state, x, dot):
        r = gates.recurrent(others, state, dot)
        x, r = (
            tuple(tag(f"layer_norm_gru.{part}_{gate}", a) for gate, a in zip("rzn", arrays))
            for part, arrays in (("x", x), ("r", r))
        )
        (h,) = gru_update(state, x, r, others["rb"])
        return (h,), h

    spec = gates.spec | {"rb": ((hidden,), param_spec.zeros)}
    return lifted(spec, {"h": hidden}, gates.inputs, step, products=("r",), others=("sr", "rb"))


class _Gates:
    """What enters G gates: W x and R h normalised apart, all gates of each together or not."""

    def __init__(self, hidden, bias, per_gate, epsilon):
        self.hidden, self.count = hidden, len(bias)
        self.norm = {"epsilon": epsilon, "axes": 1 if per_gate else 2}
        scale = (self.count, hidden), param_spec.ones
        self.spec = param_spec.gated(hidden, self.count, bias=bias) | {"sw": scale, "sr": scale}

    def inputs(self, params, x):
        x = affine(x, params["w"])
        return self._split(normalised(x, params["sw"], params["b"], **self.norm))

    def recurrent(self, others, state, dot):
        r = dot("r", state[0])
        r = r.reshape(*r.shape[:-1], self.count, self.hidden)
        return self._split(normalised(r, others["sr"], **self.norm))

    def _split(self, gates):
        return tuple(gates[..., k, :] for k in range(self.count))
