"""ONNX: its operators with a state as cells, and cells as these operators.

What is imported of the package ``onnx``, which has this one's name, is imported when it is called.
"""

from jaxrnn.interop.onnx.activations import Activation
from jaxrnn.interop.onnx.cells import backward, onnx_lstm
from jaxrnn.interop.onnx.exported import to_onnx
from jaxrnn.interop.onnx.imported import from_onnx
from jaxrnn.interop.onnx.linear_attention import onnx_linear_attention

__all__ = [
    "Activation",
    "backward",
    "from_onnx",
    "onnx_linear_attention",
    "onnx_lstm",
    "to_onnx",
]

# As in jaxrnn itself: pickles and saved files name the public path.
for _name in ("Activation", "backward", "onnx_linear_attention", "onnx_lstm"):
    globals()[_name].__module__ = __name__
