"""Which tests own a file: command lines of pytest, run one after the other until one is red.

A file that a suite has not is left out, so that an older suite can be tried.
"""

LAWS = "tests/test_laws.py tests/test_rows.py"  # of cells, by name
# A fault in C++ is built for one instruction set, and one test wants all of the processor's.
CPU = "tests/test_cpu.py --deselect=tests/test_cpu.py::test_the_sets_are_those_of_the_processor"

OWNERS = {
    "jaxrnn/_src/core/sequence.py": (f"{LAWS} -k 'smooth or dropout_sequence'",),
    "jaxrnn/_src/core/wide_scan.py": ("tests/test_accumulators.py",),
    "jaxrnn/_src/builders/gated.py": (
        f"{LAWS} -k 'elman_relu or cfn'",
        "tests/test_updates.py",
    ),
    "jaxrnn/_src/wrappers/stack.py": (
        f"{LAWS} -k 'bidirectional and gru_reset_before'",
        f"{LAWS} -k 'highway or parallel_product or dropout_sequence'",
        "tests/test_structure.py",
    ),
    "jaxrnn/_src/wrappers/regularise.py": (
        "tests/test_structure.py",
        f"{LAWS} -k zoneout",
    ),
    "jaxrnn/_src/core/dropout_masks.py": ("tests/test_draws.py", "tests/test_structure.py"),
    "jaxrnn/_src/builders/step_inputs.py": ("tests/test_step_inputs.py",),
    "jaxrnn/_src/core/every_step.py": ("tests/test_every_step.py",),
    "jaxrnn/_src/core/pool.py": ("tests/test_pool.py",),
    "jaxrnn/_src/core/gathered.py": ("tests/test_sharding.py -k 'weights or members'",),
    "jaxrnn/_src/ops/row_partition.py": (
        "tests/test_sharding.py -k 'members or recur'",
        "tests/test_tpu.py -k divided",
    ),
    "jaxrnn/_src/ops/newton/": ("tests/test_newton.py",),
    "jaxrnn/_src/ops/gpu/": (
        "tests/test_gpu_chips.py",
        "tests/test_gpu_kernel.py -k 'gru or initial'",
        "tests/test_gpu_kernel.py -k vmap",
    ),
    "jaxrnn/interop/transformers/": ("tests/test_interop_transformers.py",),
    "jaxrnn/_src/core/streaming.py": ("tests/test_pieces.py",),
    "jaxrnn/_src/core/closures.py": ("tests/test_closures.py",),
    "jaxrnn/_src/core/tags.py": ("tests/test_tags.py",),
    "jaxrnn/_src/ops/operation.py": (
        "tests/test_operation.py",
        "tests/test_unused.py",
        "tests/test_transforms.py -k lstm",
    ),
    "jaxrnn/_src/builders/diagonal.py": (f"{LAWS} -k '[lru or rg_lru_block'",),
    "jaxrnn/_src/builders/lifted.py": (f"{LAWS} -k 'gru_reset_before or lstm_projection_wide'",),
    "jaxrnn/_src/builders/convolved.py": (f"{LAWS} -k 'conv1d_dilated or qrnn_f'",),
    "jaxrnn/_src/core/input_history.py": (f"{LAWS} -k 'conv1d_dilated or qrnn_f'",),
    "jaxrnn/_src/cells/attention.py": (
        "tests/test_streams.py",
        f"{LAWS} -k attention_window",
    ),
    "jaxrnn/_src/core/rotary.py": (
        "tests/test_streams.py",
        f"{LAWS} -k attention_window",
    ),
    "jaxrnn/_src/inspect/trace.py": ("tests/test_inside.py",),
    "jaxrnn/files.py": ("tests/test_files.py",),
    "jaxrnn/nnx.py": ("tests/test_flax.py",),
    "jaxrnn/linen.py": ("tests/test_flax.py",),
    "jaxrnn/_src/wrappers/int8.py": ("tests/test_quantize.py",),
    "jaxrnn/_src/wrappers/truncated.py": ("tests/test_long_training.py",),
    "jaxrnn/_src/wrappers/wavefront.py": ("tests/test_wavefront.py",),
    "jaxrnn/_src/ops/attention/": (
        "tests/test_attend.py",
        f"{LAWS} -k attention_window",
        "tests/test_cudnn.py",
    ),
    "jaxrnn/_src/ops/attention/cpu.py": (
        "tests/test_attend_cpu.py",
        "tests/test_sharding.py -k heads",
    ),
    "jaxrnn/_src/ops/attention/devices.py": ("tests/test_time_axis.py -k 'attention or ring'",),
    "jaxrnn/_src/ops/attention/over_time.py": ("tests/test_time_axis.py -k 'attention or ring'",),
    "jaxrnn/_src/ops/linear_scan/": ("tests/test_linear.py -k 'not tpu and not gpu'",),
    "jaxrnn/_src/ops/linear_scan/tpu/": ("tests/test_linear.py -k tpu",),
    "jaxrnn/_src/ops/linear_scan/gpu/": ("tests/test_linear.py -k 'gpu or blocks_for'",),
    "jaxrnn/_src/ops/step_loop/": (
        "tests/test_step_loop.py",
        "tests/test_loop_cpu.py",
        f"{LAWS} -k 'gru_reset_before or conv_gru'",
        "tests/test_structure.py",
    ),
    "jaxrnn/_src/ops/matrix_memory/": (
        "tests/test_matrix_memory.py",
        f"{LAWS} -k '[mlstm'",
    ),
    "jaxrnn/_src/ops/matrix_memory/gpu/": ("tests/test_matrix_memory.py -k gpu",),
    "jaxrnn/_src/ops/delta_rule/": ("tests/test_delta_rule.py",),
    "jaxrnn/_src/ops/heads.py": ("tests/test_matrix_memory.py", "tests/test_delta_rule.py"),
    "jaxrnn/_src/builders/memory.py": (f"{LAWS} -k 'retention or delta_product'",),
    "jaxrnn/_src/ops/recurrence/xla.py": (
        f"{LAWS} -k 'gru_states or elman_relu'",
        "tests/test_pieces.py",
    ),
    "jaxrnn/_src/ops/recurrence/residuals.py": (
        f"{LAWS} -k 'gru_states or elman_relu'",
        "tests/test_tpu.py -k gru",
    ),
    "jaxrnn/_src/ops/recurrence/packed.py": (
        f"{LAWS} -k candidate_first",
        "tests/test_gpu.py",
        "tests/test_updates.py",
    ),
    "jaxrnn/_src/ops/recurrence/chunks.py": (f"{LAWS} -k lstm_chunks",),
    "jaxrnn/_src/ops/recurrence/elements.py": ("tests/test_dtypes.py", "tests/test_updates.py"),
    "jaxrnn/_src/ops/recurrence/program.py": ("tests/test_updates.py",),
    "jaxrnn/_src/ops/recurrence/cpu.py": (CPU,),
    "jaxrnn/_src/ops/recurrence/tpu/": (
        "tests/test_tpu.py -k 'gru or lanes or blocks or tiles or initial or bfloat16'",
    ),
    "jaxrnn/_src/ops/recurrence/gpu/": ("tests/test_gpu_kernel.py -k 'gru or initial'",),
    "jaxrnn/_src/cells/lstm.py": (f"{LAWS} -k 'lstm_everything or lstm_coupled'",),
    "jaxrnn/_src/cells/gru.py": (
        "tests/test_rows.py -k 'gru_activations or layer_norm_gru'",
        f"{LAWS} -k 'gru_heads or gru_reset_before'",
    ),
    "jaxrnn/_src/cells/mixture_of_experts.py": (
        "tests/test_rows.py -k mixture",
        "tests/test_mixture_of_experts.py",
    ),
    "jaxrnn/_src/cells/mlstm.py": (f"{LAWS} -k 'mlstm'",),
    "jaxrnn/_src/cells/s5.py": (
        "tests/test_linear_cells.py",
        f"{LAWS} -k 's5'",
    ),
    "jaxrnn/_src/cells/mamba3.py": (
        f"{LAWS} -k mamba3",
        "tests/test_linear_cells.py -k mamba3",
    ),
    "jaxrnn/_src/cells/wkv.py": (
        "tests/test_linear_cells.py -k rwkv4",
        "tests/test_rows.py -k rwkv4",
        "tests/test_time_axis.py -k means",
    ),
    "jaxrnn/interop/biases.py": ("tests/test_interop_biases.py",),
    "jaxrnn/interop/equinox.py": ("tests/test_interop_equinox.py",),
    "jaxrnn/interop/flax.py": ("tests/test_interop_flax.py",),
    "jaxrnn/interop/flax_cells.py": ("tests/test_interop_flax.py",),
    "jaxrnn/interop/haiku.py": ("tests/test_interop_haiku.py",),
    "jaxrnn/interop/keras.py": ("tests/test_interop_keras.py",),
    "jaxrnn/interop/layers.py": ("tests/test_interop_torch.py", "tests/test_interop_keras.py"),
    "jaxrnn/interop/layout.py": (
        "tests/test_interop_equinox.py",
        "tests/test_interop_haiku.py",
        "tests/test_interop_flax.py",
    ),
    "jaxrnn/interop/torch.py": ("tests/test_interop_torch.py",),
    "jaxrnn/interop/onnx/": ("tests/test_interop_onnx.py",),
    "native/cpu/": (CPU, "tests/test_cpu_random.py"),
    "native/cpu/attention.cc": ("tests/test_attend_cpu.py",),
    "native/cpu/attention.h": ("tests/test_attend_cpu.py",),
    "native/cpu/delta_rule.cc": ("tests/test_delta_cpu.py", "tests/test_delta_rule.py -k cpu"),
    "native/cpu/delta_rule.h": ("tests/test_delta_rule.py -k cpu", "tests/test_delta_cpu.py"),
    "native/cpu/linear_scan.cc": ("tests/test_linear_cpu.py",),
    "native/cpu/linear_scan.h": ("tests/test_linear_cpu.py", "tests/test_linear.py -k cpu"),
    "native/cpu/loop.cc": ("tests/test_loop_cpu.py",),
    "native/cpu/loop.h": ("tests/test_loop_cpu.py",),
    "native/cpu/matrix_memory.cc": ("tests/test_matrix_memory.py", f"{LAWS} -k '[mlstm'"),
    "native/cpu/matrix_memory.h": ("tests/test_matrix_memory.py",),
    "native/cpu/memory_call.h": ("tests/test_matrix_memory.py", "tests/test_delta_cpu.py"),
    "native/cpu/memory_steps.h": ("tests/test_matrix_memory.py", "tests/test_delta_rule.py"),
    "native/cpu/storage.h": ("tests/test_dtypes.py", CPU),
    "native/cpu/operations.h": ("tests/test_dtypes.py", CPU),
}


def owners(path):
    """The command lines of the tests that own a file: its own row, or its folder's."""
    folders = [place for place in OWNERS if place.endswith("/") and path.startswith(place)]
    return OWNERS[path if path in OWNERS else max(folders, key=len)]
