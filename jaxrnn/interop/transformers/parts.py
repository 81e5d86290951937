"""What several language models have: layers that add to their input, and gated networks."""

from jaxrnn._src.builders.stateless import project
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import Params
from jaxrnn._src.wrappers.stack import parallel, residual, stack

Pair = tuple[Cell, Params]


def layer(norm: Pair, inner: Pair) -> Pair:
    """``x + inner(norm(x))``."""
    return residual(stack(norm[0], inner[0])), {"0": norm[1], "1": inner[1]}


def gated_network(activation: str, gate: Params, up: Params, down: Params) -> Pair:
    """``down(activation(gate(x)) * up(x))``, of the parameters of three ``jaxrnn.project``."""

    def product(params, activation=None):
        return project(params["w"].shape[1], activation=activation, bias="b" in params)

    both = parallel(product(gate, activation), product(up), merge="product")
    return stack(both, product(down)), {"0": {"0": gate, "1": up}, "1": down}
