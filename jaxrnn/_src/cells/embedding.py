"""Vectors for tokens."""

import jax
import jax.numpy as jnp

from jaxrnn._src.builders.stateless import stateless
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor


@constructor
def embedding(vocabulary: int, features: int) -> Cell:
    """A vector for each token, which is learned: the first cell of a stack that reads tokens.

        y = table[x]

    Args:
      vocabulary: V, how many tokens there are.
      features: O, the size of a vector.

    Returns:
      A ``Cell`` without a state. Its inputs are integers without an axis of features: xs
      [T, ...batch], x [...batch]; outputs are in the type of the table. Parameters ``table``
      [V, O], whose numbers begin with the variance 1 / O. ``in_size`` is None.

      A token of V or more becomes a vector of NaN.

    Raises:
      TypeError: inputs are no integers.

    >>> cell = jaxrnn.stack(jaxrnn.embedding(256, 8), jaxrnn.lstm(16), jaxrnn.project(256))
    >>> params = cell.init(jax.random.key(0), None)
    >>> tokens = jnp.array([[72, 105, 33], [72, 111, 33]]).T
    >>> tokens.shape, jaxrnn.unroll(cell, params, tokens)[1].shape
    ((3, 2), (3, 2, 256))
    """
    vocabulary = checks.size("vocabulary", vocabulary)
    features = checks.size("features", features)
    normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)

    def init(key, in_size):
        checks.check_key(key)
        if in_size is not None:
            want = "None: tokens have no features"
            raise ValueError(f"in_size: got {checks.described(in_size)}, want {want}")
        return {"table": normal(key, (vocabulary, features))}

    def apply(params, x):
        checks.check_names(params, ["table"])
        table = params["table"]
        checks.check_floating("params['table']", table)
        if table.shape != (vocabulary, features):
            want = f"({vocabulary}, {features})"
            raise ValueError(f"params['table']: got shape {table.shape}, want {want}")
        checks.check_array("xs", x, "an array of ints [T, ...batch]")
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"xs: got {x.dtype}, want an integer type: tokens [T, ...batch]")
        return jnp.take(table, x, axis=0, mode="fill", fill_value=jnp.nan)

    return stateless(init, apply)
