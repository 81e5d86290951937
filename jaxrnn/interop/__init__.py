"""Weights from elsewhere and back: other libraries' layers as cells, and cells as theirs."""

from jaxrnn.interop.onnx import from_onnx, to_onnx
