"""The types that public functions and cells are annotated with.

Where a type is ``Any``, the reason stands beside it; no other public ``Any`` is without one.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias

import jax

from jaxrnn._src.core.options import InputArray as InputArray
from jaxrnn._src.core.options import Options

Array = jax.Array
# An array [T, ...batch, I]; of integers [T, ...batch] for a cell that reads tokens; a dict of such
# arrays for one that reads several. So is an output: only its cell knows which.
Inputs: TypeAlias = Any
Outputs: TypeAlias = Any
# The size of an input: None for tokens, a dict of sizes for a dict of inputs.
InSize: TypeAlias = int | Mapping[str, Any] | None
PRNGKey: TypeAlias = jax.Array  # from `jax.random.key`, or of the old kind
Shape: TypeAlias = tuple[int, ...]

# A tree of arrays, a nested dict of almost all cells. JAX's transforms and Optax give back any
# tree, and a cell made by hand may have another one.
Params: TypeAlias = Any
# A tree of arrays whose structure each cell chooses: (h, c) of an LSTM, a tuple of a stack's.
State: TypeAlias = Any
# An object of another library, which need not be installed.
Theirs: TypeAlias = Any

Activation: TypeAlias = str | Callable[[Array], Array]  # in `jax.nn`, or elementwise
Initializer: TypeAlias = Callable[[PRNGKey, Any, Any], Array]  # (key, shape, dtype), as in JAX
# The parameters of a cell: (shape, initializer) by name, with `jaxrnn.INPUTS` in a shape.
Spec: TypeAlias = Mapping[str, tuple[tuple[Any, ...], Initializer]]
Update: TypeAlias = Callable[..., tuple[Array, ...]]  # (state, x, r, **unit), see `jaxrnn.gated`
# Of one parameter: an initializer, the name of one in `jax.nn.initializers`, or one for each gate.
Initializers: TypeAlias = str | Initializer | tuple[str | Initializer, ...]
ImplementationName: TypeAlias = Literal["reference", "xla", "cpu", "tpu", "gpu", "newton"]
Residuals: TypeAlias = Literal["gates", "states", "chunks"]
Per: TypeAlias = Literal["step", "sequence"]
# None leaves the outputs apart, as a tuple.
Merge: TypeAlias = Literal["concat", "sum", "mean", "product"] | Callable[..., Array] | None
# By the name of a parameter, the names of its axes; None is an axis that is not divided.
Partitioning: TypeAlias = Mapping[str, tuple[str | None, ...]]


class Device(Protocol):
    """A ``jax.Device``, which JAX gives no type."""

    @property
    def platform(self) -> str: ...

    @property
    def device_kind(self) -> str: ...


class Init(Protocol):
    """Makes the parameters of a cell, for inputs of ``in_size`` features."""

    def __call__(self, key: PRNGKey, in_size: Any, /) -> Params: ...


class InitialState(Protocol):
    """The state before the first step: a tree of arrays [...batch, ...]."""

    def __call__(self, params: Params, batch_shape: Shape, /) -> State: ...


class StepWithKey(Protocol):
    """A ``Step`` to be lifted, whose key has no default."""

    def __call__(
        self, params: Params, state: State, x: Array, /, key: PRNGKey | None
    ) -> tuple[State, Array]: ...


class Step(Protocol):
    """One time step: x [...batch, I], y [...batch, O] in the type of x.

    ``key`` is the same at every step of a sequence, and None in evaluation.
    """

    def __call__(
        self, params: Params, state: State, x: Array, /, key: PRNGKey | None = None
    ) -> tuple[State, Array]: ...


class Unroll(Protocol):
    """A scan of the step: xs [T, ...batch, I], ys [T, ...batch, O] in the type of xs.

    ``state`` is None for the initial state. Arguments are checked and padding is zero before it is
    called.
    """

    def __call__(
        self,
        params: Params,
        state: State | None,
        xs: Array,
        options: Options,
        /,
    ) -> tuple[State, Outputs]: ...  # of one that takes `every`, with the states after each step
