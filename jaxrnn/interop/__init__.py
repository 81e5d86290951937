"""Weights from other libraries, and back: exact, or an error that says what has no counterpart.

    cell, params = from_...(theirs)      a cell that computes the same, and its parameters
    theirs = to_...(cell, params)        their object, ready to run

Nothing but NumPy is imported by ``from_...``: who hands in their object has their library loaded.

What is theirs becomes what a user of jaxrnn would have written: several layers a ``jaxrnn.stack``,
two directions ``jaxrnn.bidirectional``, dropout ``jaxrnn.dropout``, a layer without a bias
``without_bias``. Here time leads, [T, ...batch, I], whatever axis leads there; ``jaxrnn.unroll``
always gives both all outputs and the final state, and padding comes out as zero.

Where they have two biases that only enter as their sum, here is one. That changes no output, but
each of two takes a step of its own in training, so their sum moves twice as far. With
``double_bias=True`` both are kept: training follows the path it would take there, and the way
back gives the same bits.

Parameters are copies, in the types that JAX has: float64 becomes float32 unless it is enabled.

>>> import numpy as np
>>> import jaxrnn.interop
>>> rng = np.random.default_rng(0)
>>> shapes = {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "bias_ih_l0": 16, "bias_hh_l0": 16}
>>> state_dict = {name: rng.normal(size=shape) for name, shape in shapes.items()}
>>> cell, params = jaxrnn.interop.from_torch(state_dict)
>>> cell, jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))[1].shape
(lstm(hidden=4), (5, 2, 4))
"""

from jaxrnn.interop.biases import double_bias, without_bias
from jaxrnn.interop.equinox import from_equinox, to_equinox
from jaxrnn.interop.flax import from_flax, to_linen, to_nnx
from jaxrnn.interop.haiku import from_haiku, to_haiku
from jaxrnn.interop.keras import from_keras, to_keras
from jaxrnn.interop.onnx import from_onnx, to_onnx
from jaxrnn.interop.torch import from_torch, to_torch
from jaxrnn.interop.transformers import from_transformers

__all__ = [
    "double_bias",
    "from_equinox",
    "from_flax",
    "from_haiku",
    "from_keras",
    "from_onnx",
    "from_torch",
    "from_transformers",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_onnx",
    "to_torch",
    "without_bias",
]

# As in jaxrnn itself: pickles, saved files and errors name the public path.
for _name in __all__:
    globals()[_name].__module__ = __name__
