"""Language models of transformers: a tiny random one gives the same logits."""

import itertools

import jax
import numpy as np
import pytest

import jaxrnn
import jaxrnn.interop

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 10))  # [B, T]
SIZES = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 4}
MAMBA2 = SIZES | {"num_heads": 4, "head_dim": 4, "n_groups": 2, "chunk_size": 4}
RWKV = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "context_length": 16}
XLSTM = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_heads": 2}
XLSTM |= {"chunk_size": 4, "ffn_round_up_to_multiple_of": 6}
GEMMA = {"vocab_size": 11, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 10}
GEMMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_window_size": 4}
GEMMA |= {"lru_width": 12, "conv1d_width": 3, "logits_soft_cap": 3.0, "pad_token_id": None}
QWEN = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 6}
QWEN |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 0}
QWEN |= {"linear_key_head_dim": 3, "linear_value_head_dim": 2, "linear_conv_kernel_dim": 3}
QWEN |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "max_position_embeddings": 16}
QWEN |= {"rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}}
QWEN |= {"layer_types": ["linear_attention", "full_attention"]}
MOE = QWEN | {"num_hidden_layers": 3, "decoder_sparse_step": 2, "num_experts": 4}
MOE |= {"num_experts_per_tok": 2, "moe_intermediate_size": 4}
MOE |= {"shared_expert_intermediate_size": 3, "layer_types": ["linear_attention"] * 3}
WIDE = {"layer_norm_epsilon": 0.1}
MODELS = {
    "mamba": ("Mamba", SIZES | {"time_step_rank": 3}),
    "mamba_bias": ("Mamba", SIZES | WIDE | {"use_bias": True, "expand": 1, "conv_kernel": 3}),
    "mamba2": ("Mamba2", MAMBA2),
    "rwkv": ("Rwkv", RWKV),
    "rwkv_sizes": ("Rwkv", RWKV | WIDE | {"attention_hidden_size": 12, "intermediate_size": 5}),
    "xlstm": ("xLSTM", XLSTM | {"gate_soft_cap": 2.0, "output_logit_soft_cap": 3.0}),
    "gemma": ("RecurrentGemma", GEMMA | {"rms_norm_eps": 0.1}),
    "qwen3_next": ("Qwen3Next", QWEN | {"rms_norm_eps": 0.1}),
    "qwen3_next_experts": ("Qwen3Next", MOE | {"norm_topk_prob": True}),
    "qwen3_next_as_is": (
        "Qwen3Next",
        MOE | {"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": [0]},
    ),
    "mamba2_bias": ("Mamba2", MAMBA2 | WIDE | {"use_bias": True}),
}


def model(name, **options):
    kind, sizes = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**sizes | options)
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():  # what begins at zero or one would hide mistakes
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return theirs


@pytest.mark.parametrize("name", MODELS)
def test_logits(name):
    """Of the whole, and of a state carried from one half to the next."""
    theirs = model(name)
    with torch.no_grad():
        wanted = theirs(torch.tensor(TOKENS), use_cache=False).logits.numpy()
    cell, params = jaxrnn.interop.from_transformers(theirs)
    run = jax.jit(lambda tokens, state: jaxrnn.unroll(cell, params, tokens, state))
    state, first = run(TOKENS.T[:5], cell.initial_state(params, (3,)))
    _, rest = run(TOKENS.T[5:], state)
    came = np.concatenate([first, rest]).swapaxes(0, 1)
    assert np.abs(came - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(wanted - wanted[:1]).max() > 0.1


OLDER = {"layer_types": None, "full_attention_interval": 2, "rope_parameters": None}
OLDER |= {"rope_theta": 100.0, "partial_rotary_factor": 0.5}
OLDER |= {"num_experts": 4, "mlp_only_layers": [0, 1]}


@pytest.mark.parametrize(
    "name, given",
    [("mamba2", {}), ("mamba_bias", {"time_step_rank": "auto"}), ("qwen3_next", OLDER)],
)
def test_a_file_and_its_config(name, given):
    """In all the ways that a config.json says the same."""
    theirs = model(name)
    config = theirs.config.to_dict() | given
    arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    cell, params = jaxrnn.interop.from_transformers(arrays, config=config)
    other, same = jaxrnn.interop.from_transformers(theirs)
    assert cell == other
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same))


def test_fused_products():
    """An xLSTM may hold the products of the same input as one array."""
    theirs = model("xlstm")
    arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    fused = dict(arrays)
    together = {
        "mlstm_layer.qkv_opreact": ("q", "k", "v", "ogate_preact"),
        "mlstm_layer.ifgate_preact": ("igate_preact", "fgate_preact"),
        "ffn.proj_up_gate_z": ("proj_up_gate", "proj_up"),
    }
    for i, (one, parts) in itertools.product(range(2), together.items()):
        place, _, name = f"backbone.blocks.{i}.{one}".rpartition(".")
        for kind in ("weight", "bias"):
            found = [fused.pop(f"{place}.{part}.{kind}", None) for part in parts]
            if found[0] is not None:
                fused[f"{place}.{name}.{kind}"] = np.concatenate(found)
    assert len(fused) < len(arrays)
    config = theirs.config.to_dict()
    wanted = jaxrnn.interop.from_transformers(arrays, config=config)
    came = jaxrnn.interop.from_transformers(fused, config=config | {"weight_mode": "fused"})
    assert came[0] == wanted[0]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), came[1], wanted[1]))


def test_experts_of_a_file():
    """It holds the arrays of each expert, which a model joins."""
    theirs = model("qwen3_next_as_is")
    arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    for name in [name for name in arrays if ".experts." in name]:
        place, _, kind = name.rpartition(".")
        for e, array in enumerate(arrays.pop(name)):
            parts = np.split(array, 2) if kind == "gate_up_proj" else [array]
            kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
            arrays |= {f"{place}.{e}.{k}.weight": a for k, a in zip(kinds, parts)}
    cell, params = jaxrnn.interop.from_transformers(arrays, config=theirs.config)
    other, same = jaxrnn.interop.from_transformers(theirs)
    assert cell == other
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same))


def test_a_rescaled_model():
    """transformers divides weights to run them: then they are no longer the model's.

    It halves what the next norm sees, too, to whose epsilon it is then nearer.
    """
    theirs = model("rwkv", rescale_every=1)
    cell, params = jaxrnn.interop.from_transformers(theirs)
    with torch.no_grad():
        wanted = theirs(torch.tensor(TOKENS), use_cache=False).logits.numpy()
    came = np.asarray(jaxrnn.unroll(cell, params, TOKENS.T)[1]).swapaxes(0, 1)
    assert np.abs(came - wanted).max() < 1e-3 * np.abs(wanted).max()
    with pytest.raises(ValueError, match="source: got a model whose layers are rescaled"):
        jaxrnn.interop.from_transformers(theirs)


def test_what_has_no_counterpart():
    theirs = model("mamba")
    arrays, config = theirs.state_dict(), theirs.config.to_dict()
    read = jaxrnn.interop.from_transformers
    with pytest.raises(ValueError, match="hidden_act='gelu', want 'silu'"):
        read(arrays, config=config | {"hidden_act": "gelu"})
    with pytest.raises(ValueError, match="model_type='bert', want one of"):
        read(arrays, config=config | {"model_type": "bert"})
    yarn = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}
    for kind, sizes, options, words in (
        ("xlstm", XLSTM, {"use_bias": True}, "use_bias=True, want False"),
        ("xlstm", XLSTM, {"weight_mode": "double"}, "weight_mode='double', want one of"),
        ("xlstm", XLSTM, {"num_heads": 5}, "v_dim_factor for a width of 8, want num_heads=5 to"),
        ("recurrent_gemma", GEMMA, {"block_types": ["conv"]}, "got 'conv' in block_types"),
        ("recurrent_gemma", GEMMA, {"attention_bias": True}, "attention_bias=True, want False"),
        ("recurrent_gemma", GEMMA, yarn, "rope_type='yarn', want 'default'"),
        ("qwen3_next", QWEN, {"layer_types": ["sliding"]}, "got 'sliding' in layer_types"),
        ("qwen3_next", QWEN, {}, "got no 'model.embed_tokens.weight'"),
    ):
        with pytest.raises(ValueError, match=words):
            read({}, config=sizes | {"model_type": kind} | options)
    with pytest.raises(TypeError, match="config: got None"):
        read(arrays)
    with pytest.raises(TypeError, match="source: got int"):
        read(3)
    with pytest.raises(ValueError, match="got shape"):
        read(arrays, config=config | {"vocab_size": 12})
    with pytest.raises(ValueError, match="which have no place"):
        read({**arrays, "more": arrays["lm_head.weight"]}, config=config)
    last = arrays.pop("lm_head.weight")
    _, params = read(arrays, config=config)  # tied to the embedding, which is the same
    assert (params[str(len(params) - 1)]["w"] == last.numpy().T).all()
    with pytest.raises(ValueError, match="got no 'lm_head.weight'"):
        read(arrays, config=config | {"tie_word_embeddings": False})
    del arrays["backbone.layers.1.mixer.D"]
    with pytest.raises(ValueError, match=r"got no 'backbone.layers.1.mixer.D'"):
        read(arrays, config=config)
