"""Recurrent networks for JAX: cells are pure functions, scanned over time."""

from jaxrnn import inside
from jaxrnn.attention import attention, transformer_block
from jaxrnn.attentive import attentive, remember
from jaxrnn.cell import Cell, cell, constructor, explain, unroll
from jaxrnn.cells.additive import atr, cfn, minimal_rnn, ran, star
from jaxrnn.cells.conv1d import conv1d
from jaxrnn.cells.conv_lstm import conv_gru, conv_lstm
from jaxrnn.cells.cornn import cornn
from jaxrnn.cells.delta_net import delta_net, delta_product, gated_delta_net, kimi_delta
from jaxrnn.cells.dreamer import dreamer_gru
from jaxrnn.cells.elman import elman
from jaxrnn.cells.fast_grnn import fast_grnn
from jaxrnn.cells.gilr import gilr
from jaxrnn.cells.gla import gla, hgrn2
from jaxrnn.cells.gru import gru
from jaxrnn.cells.indrnn import indrnn
from jaxrnn.cells.irnn import irnn
from jaxrnn.cells.janet import janet
from jaxrnn.cells.layer_norm import layer_norm_gru, layer_norm_lstm
from jaxrnn.cells.leaky import leaky
from jaxrnn.cells.lem import lem
from jaxrnn.cells.ligru import ligru
from jaxrnn.cells.linear_attention import linear_attention, retention
from jaxrnn.cells.lru import lru
from jaxrnn.cells.lstm import lstm
from jaxrnn.cells.mamba import mamba2
from jaxrnn.cells.mgu import mgu
from jaxrnn.cells.min_rnn import min_gru, min_lstm
from jaxrnn.cells.mlstm import mlstm
from jaxrnn.cells.multiplicative_lstm import multiplicative_lstm
from jaxrnn.cells.qrnn import qrnn
from jaxrnn.cells.rg_lru import rg_lru, rg_lru_block
from jaxrnn.cells.rhn import rhn
from jaxrnn.cells.rwkv import rwkv6, rwkv7
from jaxrnn.cells.s5 import s5
from jaxrnn.cells.slstm import slstm
from jaxrnn.cells.sru import sru
from jaxrnn.cells.ugrnn import ugrnn
from jaxrnn.combine import bidirectional, dense, dropout, highway, parallel, residual, stack
from jaxrnn.episodes import from_dones
from jaxrnn.gated import gated
from jaxrnn.initialized import chrono, initialized
from jaxrnn.int8 import int8, quantize
from jaxrnn.learned import learned_state
from jaxrnn.linear import linear_scan
from jaxrnn.regularise import recurrent_dropout, variational_dropout, zoneout
from jaxrnn.reparameterised import weight_dropout, with_params
from jaxrnn.stateless import layer_norm, project, stateless
from jaxrnn.trace import trace
from jaxrnn.truncated import truncated
