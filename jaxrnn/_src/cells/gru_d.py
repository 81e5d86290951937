"""The GRU for values that are often missing."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import relu, sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders import step_inputs
from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.linear import gates
from jaxrnn._src.core.tags import tag
from jaxrnn._src.ops.step_loop import split

_BESIDE = ("observed", "dt")


@constructor
def gru_d(hidden: int) -> Cell:
    """The GRU for missing values, GRU-D (Che et al. 2016, arXiv:1606.01865).

        d = dt + s                                s = 0 where m, else d
        k = x - mean where m, else k
        u = mean + k where m, else mean + exp(-relu(g * d + c)) * k
        e = exp(-relu(G d + c_h)) * h
        r, z = sigmoid(W u + R e + V m + b)       n = tanh(W_n u + R_n (r * e) + V_n m + b_n)
        h = (1 - z) * e + z * n

    m says which of the features are observed. A missing one is at first what it was, and decays to
    its mean with the time d since it was observed; so does the state, to zero. Until a feature is
    observed, it is its mean. It has no fused kernel.

    Args:
      hidden: H, the size of the state and the output.

    Returns:
      A ``Cell`` whose input is a dict of ``x`` [..., I], ``observed`` [..., I], 1 or 0 for each
      feature, and the time since the step before, ``dt`` [..., 1], zero or more. What x is where
      it is not observed changes nothing, NaN included. State ``(h, k, s)``, [..., H] and twice
      [..., I]; parameters ``w`` and ``v`` [I, 3, H], ``r`` [H, 3, H] and ``b`` [3, H], gates in
      the order r z n; ``gh`` [I, H] and ``ch`` [H], G and c_h; ``gx``, ``cx``, g and c, and
      ``mean`` [I]. The mean begins at zero: set it to that of the data.

    Raises:
      ValueError, TypeError: the input is no such dict.

    >>> cell = jaxrnn.gru_d(hidden=4)
    >>> params = cell.init(jax.random.key(0), {"x": 2, "observed": 2, "dt": 1})
    >>> x = jnp.ones((7, 3, 2)).at[2:5, :, 0].set(jnp.nan)
    >>> xs = {"x": x, "observed": (x == x).astype(x.dtype), "dt": jnp.full((7, 3, 1), 0.5)}
    >>> (h, kept, since), ys = jaxrnn.unroll(cell, params, xs)
    >>> ys.shape, bool(jnp.isfinite(ys).all())
    ((7, 3, 4), True)
    """
    hidden = checks.size("hidden", hidden)

    def inputs(params, x):
        x, observed, dt = _checked(x)
        return x, observed, dt, gates({"w": params["v"], "b": params["b"]}, observed)

    def step(own, state, x, dot):
        (h, kept, since), (x, observed, dt, (vr, vz, vn)) = state, x
        seen, since = observed > 0, jnp.broadcast_to(dt, since.shape) + since
        left = tag("gru_d.left", jnp.exp(-relu(own["gx"] * since + own["cx"])))
        kept = jnp.where(seen, x - own["mean"], kept)
        u = tag("gru_d.u", own["mean"] + jnp.where(seen, kept, left * kept))
        e = tag("gru_d.e", jnp.exp(-relu(dot("gh", since) + own["ch"])) * h)
        (wr, wz, wn), (rr, rz) = split(dot("w", u), 3), split(dot("rz", e), 2)
        r, z = tag("gru_d.r", sigmoid(wr + rr + vr)), tag("gru_d.z", sigmoid(wz + rz + vz))
        n = tag("gru_d.n", tanh(wn + dot("n", r * e) + vn))
        h = tag("gru_d.h", e + z * (n - e))
        return (h, kept, jnp.where(seen, 0, since)), h

    def products(params):
        r = params["r"]
        return {"gh": params["gh"], "w": params["w"], "rz": r[:, :2], "n": r[:, 2]}

    features = (param_spec.INPUTS,)
    spec = param_spec.gated(hidden, gates=3) | {
        "v": ((*features, 3, hidden), param_spec.input_init),
        "gh": ((*features, hidden), param_spec.input_init),
        "ch": ((hidden,), param_spec.zeros),
        "gx": (features, jax.nn.initializers.uniform(1.0)),
        "cx": (features, param_spec.zeros),
        "mean": (features, param_spec.zeros),
    }
    states = {"h": hidden, "k": param_spec.INPUTS, "s": param_spec.INPUTS}
    cell = lifted(
        spec,
        states,
        inputs,
        step,
        products=products,
        others=("gx", "cx", "ch", "mean"),
        beside=_BESIDE,
    )

    def init(key, in_size):
        size = step_inputs.features(_BESIDE, in_size, "in_size")
        if (in_size["observed"], in_size["dt"]) != (size, 1):
            want = f"{size} for observed, as for x, and 1 for dt"
            raise ValueError(f"in_size: got {in_size}, want {want}")
        return cell.init(key, in_size)

    return dataclasses.replace(cell, init=init)


def _checked(x):
    """Its arrays, of the right shapes."""
    x, observed, dt = x["x"], x["observed"], x["dt"]
    for name, a, size in (("observed", observed, x.shape[-1]), ("dt", dt, 1)):
        checks.check_floating(f"xs[{name!r}]", a)
        if a.shape != (*x.shape[:-1], size):
            want = (*x.shape[:-1], size)
            raise ValueError(f"xs[{name!r}]: got shape {a.shape}, want {want}")
    return x, observed, dt
