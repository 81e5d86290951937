"""Recurrent networks for JAX: cells are pure functions, scanned over time."""

from jaxrnn.attention import attention, transformer_block
from jaxrnn.cell import Cell, cell, constructor, explain, unroll
from jaxrnn.cells.elman import elman
from jaxrnn.cells.gru import gru
from jaxrnn.cells.indrnn import indrnn
from jaxrnn.cells.irnn import irnn
from jaxrnn.cells.janet import janet
from jaxrnn.cells.leaky import leaky
from jaxrnn.cells.lstm import lstm
from jaxrnn.cells.mgu import mgu
from jaxrnn.cells.slstm import slstm
from jaxrnn.cells.ugrnn import ugrnn
from jaxrnn.combine import bidirectional, dropout, residual, stack
from jaxrnn.gated import gated
from jaxrnn.linear import linear_scan
from jaxrnn.stateless import layer_norm, project, stateless
