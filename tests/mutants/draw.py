"""Draws faults by a seed and writes them down: ``python -m tests.mutants.draw [PATH ...]``.

What is drawn of a file depends on the seed and on this file alone. The files that are named are
drawn again, or all; the others' faults stay as they are written in drawn.txt.
"""

import argparse
import ast
import importlib.util
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import faults
from .edits import edits

ROOT = Path(__file__).parents[2]
SEED = 17
# How many faults of which file.
COUNTS = {
    "jaxrnn/_src/core/sequence.py": 2,
    "jaxrnn/_src/core/wide_scan.py": 1,
    "jaxrnn/_src/builders/gated.py": 1,
    "jaxrnn/_src/wrappers/stack.py": 2,
    "jaxrnn/_src/wrappers/regularise.py": 1,
    "jaxrnn/_src/core/dropout_masks.py": 1,
    "jaxrnn/_src/core/streaming.py": 2,
    "jaxrnn/_src/core/gathered.py": 2,
    "jaxrnn/_src/ops/row_partition.py": 6,
    "jaxrnn/_src/core/closures.py": 2,
    "jaxrnn/_src/ops/operation.py": 4,
    "jaxrnn/_src/builders/diagonal.py": 1,
    "jaxrnn/_src/builders/lifted.py": 1,
    "jaxrnn/_src/builders/convolved.py": 1,
    "jaxrnn/_src/core/input_history.py": 1,
    "jaxrnn/_src/cells/attention.py": 1,
    "jaxrnn/_src/core/rotary.py": 1,
    "jaxrnn/_src/inspect/trace.py": 2,
    "jaxrnn/files.py": 1,
    "jaxrnn/nnx.py": 1,
    "jaxrnn/linen.py": 1,
    "jaxrnn/_src/wrappers/int8.py": 1,
    "jaxrnn/_src/wrappers/truncated.py": 1,
    "jaxrnn/_src/wrappers/wavefront.py": 4,
    "jaxrnn/_src/ops/attention/blockwise.py": 2,
    "jaxrnn/_src/ops/attention/blocks.py": 1,
    "jaxrnn/_src/ops/attention/problem.py": 1,
    "jaxrnn/_src/ops/attention/over_time.py": 4,
    "jaxrnn/_src/ops/attention/cpu.py": 4,
    "jaxrnn/_src/ops/attention/devices.py": 2,
    "jaxrnn/_src/ops/linear_scan/problem.py": 1,
    "jaxrnn/_src/ops/linear_scan/xla.py": 2,
    "jaxrnn/_src/ops/linear_scan/tpu/kernel.py": 2,
    "jaxrnn/_src/ops/linear_scan/tpu/layout.py": 1,
    "jaxrnn/_src/ops/linear_scan/gpu/__init__.py": 1,
    "jaxrnn/_src/ops/linear_scan/gpu/kernel.cu": 8,
    "jaxrnn/_src/ops/step_loop/problem.py": 1,
    "jaxrnn/_src/ops/step_loop/xla.py": 2,
    "jaxrnn/_src/ops/step_loop/parts.py": 2,
    "jaxrnn/_src/ops/step_loop/cpu.py": 1,
    "jaxrnn/_src/ops/matrix_memory/chunked.py": 2,
    "jaxrnn/_src/ops/heads.py": 3,
    "jaxrnn/_src/ops/matrix_memory/cpu.py": 2,
    "jaxrnn/_src/ops/matrix_memory/reference.py": 1,
    "jaxrnn/_src/ops/matrix_memory/gpu/gates.cu": 2,
    "jaxrnn/_src/ops/matrix_memory/gpu/products.cu": 5,
    "jaxrnn/_src/ops/gpu/chips.py": 2,
    "jaxrnn/_src/ops/gpu/cubins.py": 1,
    "jaxrnn/_src/ops/gpu/launch.py": 2,
    "jaxrnn/_src/ops/recurrence/xla.py": 2,
    "jaxrnn/_src/ops/recurrence/residuals.py": 2,
    "jaxrnn/_src/ops/recurrence/packed.py": 1,
    "jaxrnn/_src/ops/recurrence/chunks.py": 1,
    "jaxrnn/_src/ops/recurrence/elements.py": 2,
    "jaxrnn/_src/ops/recurrence/program.py": 1,
    "jaxrnn/_src/ops/recurrence/cpu.py": 1,
    "jaxrnn/_src/ops/recurrence/tpu/kernel.py": 3,
    "jaxrnn/_src/ops/recurrence/tpu/layout.py": 1,
    "jaxrnn/_src/ops/recurrence/gpu/__init__.py": 1,
    "jaxrnn/_src/ops/recurrence/gpu/alone.cu": 3,
    "jaxrnn/_src/ops/recurrence/gpu/cluster.cu": 7,
    "jaxrnn/_src/ops/recurrence/gpu/exchange.cu": 4,
    "jaxrnn/_src/ops/recurrence/gpu/kernel.cu": 6,
    "jaxrnn/_src/builders/step_inputs.py": 2,
    "jaxrnn/_src/core/every_step.py": 2,
    "jaxrnn/_src/core/pool.py": 2,
    "jaxrnn/_src/ops/delta_rule/chunked.py": 3,
    "jaxrnn/_src/ops/delta_rule/stepwise.py": 1,
    "jaxrnn/_src/ops/delta_rule/cpu.py": 2,
    "jaxrnn/_src/ops/linear_scan/cpu.py": 1,
    "jaxrnn/_src/ops/newton/__init__.py": 2,
    "jaxrnn/_src/ops/newton/affine_scan.py": 1,
    "jaxrnn/_src/ops/newton/jacobian.py": 1,
    "jaxrnn/interop/transformers/mamba.py": 1,
    "jaxrnn/interop/transformers/parts.py": 1,
    "jaxrnn/_src/cells/lstm.py": 1,
    "jaxrnn/_src/cells/gru.py": 1,
    "jaxrnn/_src/cells/mlstm.py": 1,
    "jaxrnn/_src/cells/s5.py": 1,
    "jaxrnn/_src/cells/mamba3.py": 2,
    "jaxrnn/_src/cells/wkv.py": 2,
    "jaxrnn/interop/biases.py": 1,
    "jaxrnn/interop/equinox.py": 1,
    "jaxrnn/interop/flax.py": 1,
    "jaxrnn/interop/flax_cells.py": 1,
    "jaxrnn/interop/haiku.py": 1,
    "jaxrnn/interop/keras.py": 1,
    "jaxrnn/interop/layers.py": 1,
    "jaxrnn/interop/layout.py": 1,
    "jaxrnn/interop/torch.py": 1,
    "jaxrnn/interop/onnx/activations.py": 1,
    "jaxrnn/interop/onnx/cells.py": 1,
    "jaxrnn/interop/onnx/direction.py": 1,
    "jaxrnn/interop/onnx/exported.py": 1,
    "jaxrnn/interop/onnx/graph.py": 1,
    "jaxrnn/interop/onnx/imported.py": 1,
    "native/cpu/product.h": 2,
    "native/cpu/steps.h": 1,
    "native/cpu/forward.h": 2,
    "native/cpu/backward.h": 3,
    "native/cpu/schedule.h": 1,
    "native/cpu/storage.h": 2,
    "native/cpu/layout.h": 1,
    "native/cpu/call.h": 1,
    "native/cpu/vector.h": 1,
    "native/cpu/loop.h": 2,
    "native/cpu/memory_steps.h": 2,
    "native/cpu/delta_rule.h": 6,
}


def main(argv=None):
    """Writes drawn.txt; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.draw", description=__doc__)
    parser.add_argument("paths", nargs="*", metavar="PATH", help="of files to draw again")
    chosen = parser.parse_args(argv).paths or list(COUNTS)
    if unknown := set(chosen) - set(COUNTS):
        raise SystemExit(f"PATH: got {sorted(unknown)}, want some of {list(COUNTS)}")
    old = faults.read(faults.DRAWN.read_text()) if faults.DRAWN.exists() else []
    reasons = {(fault.path, fault.before, fault.after): fault.reason for fault in old}
    found = [fault for fault in old if fault.path not in chosen]
    for path in chosen:
        text = (ROOT / path).read_text()
        new = drawn(path, text, COUNTS[path], is_a_program)
        found += [
            fault._replace(reason=reasons.get((fault.path, fault.before, fault.after), ""))
            for fault in new
        ]
    found.sort(key=lambda fault: list(COUNTS).index(fault.path))
    faults.DRAWN.write_text(faults.write(found))
    return 0


def drawn(path, text, count, accepted, seed=SEED):
    """Some faults of a file: each time a kind of edit is drawn first, then one of the kind.

    Args:
      path: of the file, which is a part of the seed.
      text: of the file.
      count: how many faults.
      accepted: ``(path, text) -> bool``, whether a file can be changed to that.
    """
    random_ = random.Random(f"{seed} {path}")
    kinds = {}
    for edit in edits(path, text):
        kinds.setdefault(edit.what, []).append(edit)
    found = {}
    while len(found) < count:
        edit = random_.choice(kinds[random_.choice(list(kinds))])
        line = text.count("\n", 0, edit.start)
        changed = text[: edit.start] + edit.new + text[edit.end :]
        if line not in found and accepted(path, changed):  # a line's second fault tells little
            word = f"{len(found) + 1}, {edit.what}"
            found[line] = faults.Fault(path, word, *around(text, edit))
    return list(found.values())


def around(text, edit):
    """The lines of an edit, and as many before them as make them the only such; changed too."""
    start, end = text.rfind("\n", 0, edit.start) + 1, text.find("\n", edit.end)
    while text.count(text[start:end]) > 1:
        start = text.rfind("\n", 0, start - 1) + 1
    return text[start:end], text[start : edit.start] + edit.new + text[edit.end : end]


def is_a_program(path, text):
    """Whether a changed file is Python, or C++ to a compiler."""
    if path.endswith(".py"):
        try:
            ast.parse(text)
        except SyntaxError:
            return False
        return True
    if not path.startswith("native/"):
        return True
    include = Path(importlib.util.find_spec("jaxlib").origin).parent / "include"
    with tempfile.TemporaryDirectory() as folder:
        native = Path(shutil.copytree(ROOT / "native", Path(folder, "native")))
        Path(folder, path).write_text(text)
        command = ["g++", "-std=gnu++17", "-fsyntax-only", "-w", "-isystem", include]
        command += ["-DJAXRNN_ISA=baseline", "-DJAXRNN_BYTES=16"]
        command += [
            '-DJAXRNN_INTERPRETER="interpreter.h"',
            *(native / "cpu" / name for name in ("isa.cc", "cpu.cc")),
        ]
        done = subprocess.run(list(map(str, command)), stderr=subprocess.DEVNULL)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
