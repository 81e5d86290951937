"""Every cell of the library by its name, of one size of inputs and outputs."""

import jax

import jaxrnn

# Of those that need more than a size: as many features in and out as the others have.
_POSITIONS = 8
_SPECIAL = {
    "conv1d": lambda hidden: jaxrnn.conv1d(hidden, kernel=4),
    "leaky": lambda hidden: jaxrnn.leaky(hidden, alpha=0.2),
    "attention": lambda hidden: jaxrnn.attention(hidden, window=64),
    "grouped_attention": lambda hidden: jaxrnn.grouped_attention(hidden, window=64),
    "transformer_block": lambda hidden: jaxrnn.transformer_block(hidden, window=64),
    "conv_lstm": lambda hidden: jaxrnn.conv_lstm(hidden // _POSITIONS, shape=(_POSITIONS,)),
    "conv_gru": lambda hidden: jaxrnn.conv_gru(hidden // _POSITIONS, shape=(_POSITIONS,)),
}


# Inputs beside the features, and their sizes for so many features.
_BESIDE = {
    "cfc": lambda features: {"dt": 1},
    "gru_d": lambda features: {"observed": features, "dt": 1},
    "ltc": lambda features: {"dt": 1},
}


def names():
    """Of all public constructors of a cell with a state."""
    found = {n: c for n, c in vars(jaxrnn).items() if isinstance(c, jaxrnn.constructor)}
    sized = [name for name, make in found.items() if "hidden" in make.__signature__.parameters]
    # Two have no state, and the others are memories that take what a block makes for them.
    stateless = {"mixture_of_experts", "project"}
    return sorted(set(sized) - stateless - {"gated_delta_memory", "mlstm_memory", "ssd"})


def of_one_array():
    """Those whose input is an array of features, not a dict."""
    return [name for name in names() if name not in _BESIDE]


def in_size(name, features):
    """What ``init`` is given for so many features."""
    return {"x": features, **_BESIDE[name](features)} if name in _BESIDE else features


def inputs(name, shape):
    """The inputs of a cell, float32, if its features are [..., I]: shapes without numbers."""
    *leading, features = shape
    array = lambda size: jax.ShapeDtypeStruct((*leading, size), "float32")
    return jax.tree.map(array, in_size(name, features))


def cell(name, hidden):
    """The cell of that name, as it is by default; ``hidden`` a multiple of 8."""
    return _SPECIAL.get(name, getattr(jaxrnn, name))(hidden)
