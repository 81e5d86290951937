"""Language models of Hugging Face's transformers: from a state_dict to the same logits."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import Params, Theirs
from jaxrnn.interop.transformers import mamba, qwen3_next, recurrent_gemma, rwkv, xlstm
from jaxrnn.interop.transformers.weights import Weights

_MODELS = {
    "mamba": mamba.mamba,
    "mamba2": mamba.mamba2,
    "qwen3_next": qwen3_next.qwen3_next,
    "recurrent_gemma": recurrent_gemma.recurrent_gemma,
    "rwkv": rwkv.rwkv,
    "xlstm": xlstm.xlstm,
}


def from_transformers(
    source: Theirs, *, config: Mapping[str, Any] | Theirs | None = None
) -> tuple[Cell, Params]:
    """A cell with the weights of a recurrent language model of Hugging Face's transformers.

    Args:
      source: a ``MambaForCausalLM``, ``Mamba2ForCausalLM``, ``RwkvForCausalLM`` (version 4),
        ``xLSTMForCausalLM``, ``RecurrentGemmaForCausalLM`` or ``Qwen3NextForCausalLM``; or the
        ``state_dict`` of one, a mapping from names to tensors or NumPy arrays, as ``safetensors``
        reads it.
      config: of a ``state_dict``, which does not say it: the model's configuration, or the mapping
        that its ``config.json`` is.

    Returns:
      ``(cell, params)``. The cell reads tokens, integers [T, ...batch], and gives logits [T,
      ...batch, V]: a ``jaxrnn.stack`` of ``embedding``; of ``residual`` layers, each of
      ``rms_norm`` and ``mamba_block`` or ``mamba2_block``; of ``rms_norm`` and ``project``. For
      RWKV, layers are ``rwkv4`` and ``rwkv4_channels`` in turn, and norms are ``layer_norm``. For
      xLSTM they are ``mlstm_block`` and a gated network of ``project`` in turn, and ``soft_cap``
      comes last. RecurrentGemma mixes steps by ``rg_lru_block`` and ``grouped_attention``,
      Qwen3-Next by ``gated_delta_block`` and ``grouped_attention``, with ``mixture_of_experts`` in
      layers that have experts. The state of ``grouped_attention`` has room for
      ``max_position_embeddings`` steps: with a smaller number in ``config`` it is smaller. An
      embedding that is tied to the last product there is two arrays here, which training moves
      apart. So is a norm that all heads share. A convolution without a bias has one of zero.

    Raises:
      TypeError: ``source`` is neither, or ``config`` is missing.
      ValueError: another model; an RWKV that transformers has rescaled to run; an option that has
        no counterpart here; an array is missing, is of another shape, or has no place.

    >>> import jaxrnn.interop
    >>> sizes = {"model_type": "mamba", "vocab_size": 5, "hidden_size": 4, "state_size": 2}
    >>> sizes |= {"num_hidden_layers": 1, "time_step_rank": 1}
    >>> shapes = {"in_proj.weight": (16, 4), "conv1d.weight": (8, 1, 4), "conv1d.bias": (8,)}
    >>> shapes |= {"x_proj.weight": (5, 8), "dt_proj.weight": (8, 1), "dt_proj.bias": (8,)}
    >>> shapes |= {"A_log": (8, 2), "D": (8,), "out_proj.weight": (4, 8)}
    >>> arrays = {f"backbone.layers.0.mixer.{k}": jnp.ones(shape) for k, shape in shapes.items()}
    >>> arrays |= {"backbone.layers.0.norm.weight": jnp.ones(4)}
    >>> arrays |= {"backbone.norm_f.weight": jnp.ones(4)}
    >>> arrays |= {"backbone.embeddings.weight": jnp.ones((5, 4))}
    >>> cell, params = jaxrnn.interop.from_transformers(arrays, config=sizes)
    >>> jaxrnn.unroll(cell, params, jnp.array([[3], [1]]))[1].shape
    (2, 1, 5)
    """
    if not isinstance(source, Mapping):
        if not hasattr(source, "state_dict") or not hasattr(source, "config"):
            want = "a model of transformers, or a state_dict and its config"
            raise TypeError(f"source: got {type(source).__name__}, want {want}")
        if config is not None:
            raise ValueError("config: got one and a model, want None: it says its own")
        _check_not_rescaled(source)
        source, config = source.state_dict(), source.config
    if config is None:
        raise TypeError("config: got None and a state_dict, want the model's configuration")
    options = config if isinstance(config, Mapping) else config.to_dict()
    kind = options.get("model_type")
    if kind not in _MODELS:
        raise ValueError(f"config: got model_type={kind!r}, want one of {tuple(_MODELS)}")
    weights = Weights(source)
    cell, params = _MODELS[kind](dict(options), weights)
    weights.check_all_used()
    return cell, jax.tree.map(jnp.array, params)


def _check_not_rescaled(model):
    """In evaluation, transformers divides the weights of an RWKV's later layers."""
    every = getattr(model.config, "rescale_every", 0)
    rescaled = any(getattr(part, "layers_are_rescaled", False) for part in model.modules())
    if rescaled and 0 < every < model.config.num_hidden_layers:
        want = "one that has not run since `eval`, or the arrays of its file"
        raise ValueError(f"source: got a model whose layers are rescaled, want {want}")
