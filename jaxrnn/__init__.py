"""Recurrent networks for JAX: cells are pure functions, scanned over time."""

__version__ = "0.1.0"

from jaxrnn import inside
from jaxrnn._src.builders.diagonal import diagonal
from jaxrnn._src.builders.gated import gated
from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.builders.stateless import layer_norm, project, rms_norm, soft_cap, stateless
from jaxrnn._src.cells.additive import atr, cfn, minimal_rnn, ran, star
from jaxrnn._src.cells.attention import attention, transformer_block
from jaxrnn._src.cells.conv1d import conv1d
from jaxrnn._src.cells.conv_lstm import conv_gru, conv_lstm
from jaxrnn._src.cells.cornn import cornn
from jaxrnn._src.cells.delta_net import (
    delta_net,
    delta_product,
    gated_delta_memory,
    gated_delta_net,
    kimi_delta,
)
from jaxrnn._src.cells.dreamer import dreamer_gru
from jaxrnn._src.cells.elman import elman
from jaxrnn._src.cells.embedding import embedding
from jaxrnn._src.cells.fast_grnn import fast_grnn
from jaxrnn._src.cells.gated_delta_block import gated_delta_block
from jaxrnn._src.cells.gilr import gilr
from jaxrnn._src.cells.gla import gla, hgrn2
from jaxrnn._src.cells.grouped_attention import grouped_attention
from jaxrnn._src.cells.gru import gru
from jaxrnn._src.cells.gru_d import gru_d
from jaxrnn._src.cells.indrnn import indrnn
from jaxrnn._src.cells.irnn import irnn
from jaxrnn._src.cells.janet import janet
from jaxrnn._src.cells.layer_norm import layer_norm_gru, layer_norm_lstm
from jaxrnn._src.cells.leaky import leaky
from jaxrnn._src.cells.lem import lem
from jaxrnn._src.cells.lif import lif
from jaxrnn._src.cells.ligru import ligru
from jaxrnn._src.cells.linear_attention import linear_attention, retention
from jaxrnn._src.cells.linoss import linoss
from jaxrnn._src.cells.liquid import cfc, ltc
from jaxrnn._src.cells.lru import lru
from jaxrnn._src.cells.lstm import lstm
from jaxrnn._src.cells.mamba import mamba, mamba2, ssd
from jaxrnn._src.cells.mamba3 import mamba3
from jaxrnn._src.cells.mamba_block import mamba2_block, mamba_block
from jaxrnn._src.cells.mgu import mgu
from jaxrnn._src.cells.min_rnn import min_gru, min_lstm
from jaxrnn._src.cells.mixture_of_experts import mixture_of_experts
from jaxrnn._src.cells.mlstm import mlstm, mlstm_memory
from jaxrnn._src.cells.mlstm_block import mlstm_block
from jaxrnn._src.cells.multiplicative_lstm import multiplicative_lstm
from jaxrnn._src.cells.para_rnn import para_gru, para_lstm
from jaxrnn._src.cells.qrnn import qrnn
from jaxrnn._src.cells.rg_lru import rg_lru, rg_lru_block
from jaxrnn._src.cells.rhn import rhn
from jaxrnn._src.cells.rwkv import rwkv6, rwkv7
from jaxrnn._src.cells.rwkv4 import rwkv4, rwkv4_channels
from jaxrnn._src.cells.s5 import s5
from jaxrnn._src.cells.slstm import slstm
from jaxrnn._src.cells.sru import sru
from jaxrnn._src.cells.ttt import ttt_linear
from jaxrnn._src.cells.ugrnn import ugrnn
from jaxrnn._src.core.beams import beam_search
from jaxrnn._src.core.cell import Cell, cell, constructor, explain, unroll
from jaxrnn._src.core.episodes import from_dones
from jaxrnn._src.core.generation import generate, sample
from jaxrnn._src.core.options import Options
from jaxrnn._src.core.packing import final_states, from_segment_ids, pack, unpack
from jaxrnn._src.core.param_spec import INPUTS
from jaxrnn._src.core.pool import Pool
from jaxrnn._src.inspect.newton import newton
from jaxrnn._src.inspect.trace import trace
from jaxrnn._src.ops.exported import export_with_kernels, load_kernels
from jaxrnn._src.ops.linear_scan import linear_scan
from jaxrnn._src.wrappers.attentive import attentive, remember
from jaxrnn._src.wrappers.initialized import chrono, initialized
from jaxrnn._src.wrappers.int8 import int8, quantize
from jaxrnn._src.wrappers.learned import learned_state
from jaxrnn._src.wrappers.online_gradients import online
from jaxrnn._src.wrappers.regularise import recurrent_dropout, variational_dropout, zoneout
from jaxrnn._src.wrappers.reparameterised import weight_dropout, with_params
from jaxrnn._src.wrappers.stack import (
    bidirectional,
    dense,
    dropout,
    highway,
    parallel,
    residual,
    stack,
)
from jaxrnn._src.wrappers.truncated import truncated
from jaxrnn._src.wrappers.wavefront import wavefront

__all__ = [
    "atr",
    "attention",
    "attentive",
    "beam_search",
    "bidirectional",
    "cell",
    "Cell",
    "cfc",
    "cfn",
    "chrono",
    "constructor",
    "conv1d",
    "conv_gru",
    "conv_lstm",
    "cornn",
    "delta_net",
    "delta_product",
    "dense",
    "diagonal",
    "dreamer_gru",
    "dropout",
    "elman",
    "embedding",
    "explain",
    "export_with_kernels",
    "fast_grnn",
    "final_states",
    "from_dones",
    "from_segment_ids",
    "gated",
    "gated_delta_block",
    "gated_delta_memory",
    "gated_delta_net",
    "generate",
    "gilr",
    "gla",
    "grouped_attention",
    "gru",
    "gru_d",
    "hgrn2",
    "highway",
    "indrnn",
    "initialized",
    "INPUTS",
    "inside",
    "int8",
    "irnn",
    "janet",
    "kimi_delta",
    "layer_norm",
    "layer_norm_gru",
    "layer_norm_lstm",
    "leaky",
    "learned_state",
    "lem",
    "lif",
    "lifted",
    "ligru",
    "linear_attention",
    "linear_scan",
    "linoss",
    "load_kernels",
    "lru",
    "lstm",
    "ltc",
    "mamba",
    "mamba2",
    "mamba2_block",
    "mamba3",
    "mamba_block",
    "mgu",
    "min_gru",
    "min_lstm",
    "minimal_rnn",
    "mixture_of_experts",
    "mlstm",
    "mlstm_block",
    "mlstm_memory",
    "multiplicative_lstm",
    "newton",
    "online",
    "Options",
    "pack",
    "para_gru",
    "para_lstm",
    "parallel",
    "Pool",
    "project",
    "qrnn",
    "quantize",
    "ran",
    "recurrent_dropout",
    "remember",
    "residual",
    "retention",
    "rg_lru",
    "rg_lru_block",
    "rhn",
    "rms_norm",
    "rwkv4",
    "rwkv4_channels",
    "rwkv6",
    "rwkv7",
    "s5",
    "sample",
    "slstm",
    "soft_cap",
    "sru",
    "ssd",
    "stack",
    "star",
    "stateless",
    "trace",
    "transformer_block",
    "truncated",
    "ttt_linear",
    "ugrnn",
    "unpack",
    "unroll",
    "variational_dropout",
    "wavefront",
    "weight_dropout",
    "with_params",
    "zoneout",
]

# Pickles, errors and documentation name the public path, wherever a module lies.
for _name in __all__:
    if hasattr(globals()[_name], "__qualname__"):
        globals()[_name].__module__ = __name__
