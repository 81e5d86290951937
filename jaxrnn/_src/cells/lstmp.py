"""An LSTM whose output is projected: ``jaxrnn.lstm(..., projection=P)``."""

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, linear, param_spec
from jaxrnn._src.core.tags import tag
from jaxrnn._src.ops.step_loop import split


def lstmp(update, bias, unit, hidden, projection, *, heads, residuals):
    """The cell of an LSTM's ``update`` with a linear map of h to fewer units.

    That map is what recurs and what is the output; c keeps its size. Its product comes after that
    of the gates, so the cell is lifted from its step.

    Args:
      update: ``(state, x, r, **unit) -> (h, c)``.
      bias: what the bias of each gate begins at, a number for each.
      unit: initializers of weights [H].
      hidden: H, the size of c.
      projection: P, the size of the output.
      heads, residuals: of ``jaxrnn.gated``, which this is not: 1 and "gates".
    """
    if heads != 1 or residuals != "gates":
        raise ValueError(f"projection={projection}: got heads or residuals, want neither of them")
    hidden = checks.size("hidden", hidden)
    projection = checks.size("projection", projection)
    spec = param_spec.gated(hidden, len(bias), bias=bias)
    spec["r"] = ((projection, len(bias), hidden), param_spec.recurrent_init)
    spec["p"] = ((hidden, projection), param_spec.input_init)
    spec |= {name: ((hidden,), init) for name, init in unit.items()}

    def step(others, state, x, dot):
        x, r = (split(a, len(bias)) for a in (x, dot("r", state[0])))
        m, c = update(state, x, r, **others)
        h = dot("p", tag("lstm.m", m))
        return (h, c), h

    products, others = ("r", "p"), tuple(unit)
    states = {"h": projection, "c": hidden}
    return lifted(spec, states, linear.joined_gates, step, products=products, others=others)
