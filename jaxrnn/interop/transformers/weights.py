"""The arrays of a state_dict, each taken once; and the options of a configuration."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jax.numpy import bfloat16

Numbers = np.ndarray[Any, Any]


class Weights:
    """A state_dict, under a prefix."""

    def __init__(self, arrays: Mapping[str, Any]):
        self._arrays, self._used, self._prefix = arrays, set(), ""

    def under(self, prefix: str) -> "Weights":
        """The arrays whose names begin so."""
        part = Weights(self._arrays)
        part._used, part._prefix = self._used, f"{self._prefix}{prefix}."
        return part

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._arrays

    def __call__(self, name: str, *shape: int) -> Numbers:
        """The array of this name, which has this shape."""
        name = self._prefix + name
        if name not in self._arrays:
            raise ValueError(f"source: got no {name!r}, want one of shape {shape}")
        self._used.add(name)
        array = _array(self._arrays[name])
        if array.shape != shape:
            raise ValueError(f"source[{name!r}]: got shape {array.shape}, want {shape}")
        return array

    def linear(self, name: str, inputs: int, outputs: int, bias: bool) -> dict[str, Numbers]:
        """The parameters of ``jaxrnn.project``."""
        w = self(f"{name}.weight", outputs, inputs).T
        return {"w": w, "b": self(f"{name}.bias", outputs)} if bias else {"w": w}

    def last_product(self, name: str, table: Numbers, tied: bool) -> dict[str, Numbers]:
        """The parameters of the product that gives logits, [H, V].

        A file may leave it out where it is tied to the embedding, whose ``table`` is [V, H].
        """
        return {"w": (table if tied and name not in self else self(name, *table.shape)).T}

    def check_all_used(self) -> None:
        """No array is left over."""
        left = sorted(set(self._arrays) - self._used)
        if left:
            raise ValueError(f"source: got {left}, which have no place in such a model")


def _array(value):
    """A tensor or an array as one of NumPy's, which has no bfloat16 for a tensor of PyTorch's."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        narrow = str(value.dtype) == "torch.bfloat16"
        return value.float().numpy().astype(bfloat16) if narrow else value.numpy()
    return np.asarray(value)


def check_each(name: str, values: Iterable[Any], known: Iterable[Any]) -> None:
    """Raises a ValueError if an option of a configuration has a value that is not known."""
    for value in values:
        if value not in known:
            raise ValueError(f"config: got {value!r} in {name}, want one of {tuple(known)}")


def only(options: dict[str, Any], **wanted: Any) -> None:
    """Raises a ValueError if a configuration has an option that has no counterpart here."""
    for name, value in wanted.items():
        came = options.get(name, value)
        if came != value:
            raise ValueError(
                f"config: got {name}={came!r}, want {value!r}: there is no other here"
            )
