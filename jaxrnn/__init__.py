"""Recurrent networks for JAX: cells are pure functions, scanned over time."""

from jaxrnn.attention import attention, transformer_block
from jaxrnn.attentive import attentive, remember
from jaxrnn.cell import Cell, cell, constructor, explain, unroll
from jaxrnn.cells.elman import elman
from jaxrnn.cells.gru import gru
from jaxrnn.cells.lstm import lstm
from jaxrnn.combine import (
    bidirectional,
    dense,
    dropout,
    highway,
    parallel,
    residual,
    stack,
)
from jaxrnn.gated import gated
from jaxrnn.initialized import chrono, initialized
from jaxrnn.learned import learned_state
from jaxrnn.linear import linear_scan
from jaxrnn.regularise import recurrent_dropout, variational_dropout, zoneout
from jaxrnn.reparameterised import weight_dropout, with_params
from jaxrnn.stateless import layer_norm, project, stateless
