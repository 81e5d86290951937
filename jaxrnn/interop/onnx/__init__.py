"""ONNX: its operators RNN, GRU and LSTM as cells, and cells as these operators.

What is imported of the package ``onnx``, which has this one's name, is imported when it is called.
"""

from jaxrnn.interop.onnx.cells import backward, onnx_gru, onnx_lstm
from jaxrnn.interop.onnx.exported import to_onnx
from jaxrnn.interop.onnx.imported import from_onnx

__all__ = ["backward", "from_onnx", "onnx_gru", "onnx_lstm", "to_onnx"]
