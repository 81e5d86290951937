"""Recurrent networks for JAX: cells are pure functions, scanned over time."""

from jaxrnn.attention import attention, transformer_block
from jaxrnn.cell import Cell, cell, constructor, explain, unroll
from jaxrnn.cells.dreamer import dreamer_gru
from jaxrnn.cells.elman import elman
from jaxrnn.cells.gru import gru
from jaxrnn.cells.layer_norm import layer_norm_gru, layer_norm_lstm
from jaxrnn.cells.lstm import lstm
from jaxrnn.cells.mlstm import mlstm
from jaxrnn.combine import bidirectional, dropout, residual, stack
from jaxrnn.gated import gated
from jaxrnn.linear import linear_scan
from jaxrnn.stateless import layer_norm, project, stateless
