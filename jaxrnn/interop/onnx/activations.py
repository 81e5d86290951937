"""The activation functions of ONNX's recurrent operators."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from jaxrnn._src.core.typing import Array

# In the operators' words; further arguments are alpha and beta.
FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Relu": jax.nn.relu,
    "Tanh": jnp.tanh,
    "Sigmoid": jax.nn.sigmoid,
    "Affine": lambda a, alpha, beta: alpha * a + beta,
    "LeakyRelu": lambda a, alpha: jnp.where(a >= 0, a, alpha * a),
    "ThresholdedRelu": lambda a, alpha: jnp.where(a >= alpha, a, 0.0),
    "ScaledTanh": lambda a, alpha, beta: alpha * jnp.tanh(beta * a),
    "HardSigmoid": lambda a, alpha, beta: jnp.clip(alpha * a + beta, 0.0, 1.0),
    "Elu": lambda a, alpha: jnp.where(a >= 0, a, alpha * jnp.expm1(jnp.minimum(a, 0.0))),
    "Softsign": jax.nn.soft_sign,
    "Softplus": jax.nn.softplus,
}
# What alpha and beta are where they are not given: the default of the operator of that name. There
# is none named Affine or ScaledTanh: these have no default.
DEFAULTS: dict[str, tuple[float | None, ...]] = {
    "Affine": (None, None),
    "LeakyRelu": (0.01,),
    "ThresholdedRelu": (1.0,),
    "ScaledTanh": (None, None),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0,),
}
_NAMES = {name.lower(): name for name in FUNCTIONS}  # ONNX Runtime takes them in any case


@dataclasses.dataclass(frozen=True)
class Activation:
    """One of ONNX's activation functions: compares, hashes and pickles by what it is.

    Args:
      name: as ONNX has it.
      alpha, beta: its numbers, if it has any.
      clip: what enters it is kept between this and its negative; None for no bound.

    >>> from jaxrnn.interop.onnx.activations import Activation
    >>> Activation("ScaledTanh", 2.0, 0.5)(jnp.float32(0.0)) == 0
    Array(True, dtype=bool)
    >>> jaxrnn.elman(4, activation=Activation("Relu", clip=3.0))
    elman(hidden=4, activation=Activation(name='Relu', alpha=None, beta=None, clip=3.0))
    """

    name: str
    alpha: float | None = None
    beta: float | None = None
    clip: float | None = None

    def __call__(self, a: Array) -> Array:
        a = a if self.clip is None else jnp.clip(a, -self.clip, self.clip)
        return FUNCTIONS[self.name](a, *self.numbers)

    @property
    def numbers(self) -> tuple[float, ...]:
        return tuple(n for n in (self.alpha, self.beta) if n is not None)


# An activation of ours, by its name in jax.nn. The first of these are read back by that name.
_OURS = {
    "tanh": Activation("Tanh"),
    "sigmoid": Activation("Sigmoid"),
    "relu": Activation("Relu"),
    "soft_sign": Activation("Softsign"),
    "softplus": Activation("Softplus"),
    "leaky_relu": Activation("LeakyRelu", 0.01),
    "elu": Activation("Elu", 1.0),
    "hard_sigmoid": Activation("HardSigmoid", 1 / 6, 0.5),
    "identity": Activation("Affine", 1.0, 0.0),
}
_PLAIN = {activation: name for name, activation in _OURS.items() if not activation.numbers}


def named(activation: Activation) -> str | Activation:
    """An ``Activation``, by its name in ``jax.nn`` if it has one: what a cell is called with."""
    return _PLAIN.get(activation, activation)


def described(value: object) -> Activation:
    """What a cell was called with, a name or a function, as an ``Activation``.

    Raises:
      ValueError: it is none of ONNX's.
    """
    if isinstance(value, Activation):
        return value
    for name, activation in _OURS.items():
        if value in (name, getattr(jax.nn, name)):
            return activation
    came = getattr(value, "__name__", value)
    raise ValueError(f"activation: got {came!r}, want one that ONNX has: {tuple(_OURS)}")


def read(
    names: Iterable[str], alphas: Iterable[float], betas: Iterable[float]
) -> tuple[Activation, ...]:
    """Activations of a node's attributes: numbers go in turn to the functions that take them.

    Raises:
      ValueError: an unknown name; more numbers than functions that take one; none where there is
        no default.
    """
    left = {"activation_alpha": list(alphas), "activation_beta": list(betas)}
    read = []
    for given in names:
        if (name := _NAMES.get(given.lower())) is None:
            raise ValueError(f"activations: got {given!r}, want one of {tuple(FUNCTIONS)}")
        numbers = []
        for attribute, default in zip(left, DEFAULTS.get(name, ())):
            number = left[attribute].pop(0) if left[attribute] else default
            if number is None:
                raise ValueError(f"{attribute}: got none for {name}, which has no default")
            numbers.append(float(number))
        read.append(Activation(name, *numbers))
    for attribute, rest in left.items():
        if rest:
            came = f"{len(rest)} more than there are functions that take one"
            raise ValueError(f"{attribute}: got {came}, of {tuple(names)}")
    return tuple(read)
