"""Weights from other libraries, and back, with the same numbers.

No library is imported until an object of its own is handed in.
"""

from jaxrnn.interop.equinox import from_equinox, to_equinox
from jaxrnn.interop.flax import from_flax, to_linen, to_nnx
from jaxrnn.interop.haiku import from_haiku, to_haiku
