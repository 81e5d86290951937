"""The command line: ``python -m benchmarks [command] [options]``."""

import importlib
import sys

from benchmarks.shared.held import hold_to

COMMANDS = {
    "sequences": "a next-byte model over longer and longer sequences; the default",
    "peers": "the same LSTM and GRU in jaxrnn and in other libraries",
    "attention": "an attention layer in jaxrnn, PyTorch and Flax",
    "linear": "the linear recurrence, JAX's scans, and a copy of as many bytes",
    "streams": "one step of a stream, and a reading of its weights",
    "rules": "the rules of matrix memories: their time beside linear attention, their memory",
    "cells": "a layer of every cell of the library",
    "accelerator": "what is right, and how fast it is, on this machine's GPU or TPU",
    "plans": "every plan of the kernel for NVIDIA GPUs, on one: see `make accelerator-kernel`",
    "programs": "the kernel for CPUs beside an LSTM written by hand: see `make programs`",
    "aot": "cycles, bytes and kernels of a step, compiled for TPUs and an H200",
    "exported": "exported programs on a CPU, with the kernel and without",
    "mlstm": "what XLA moves and launches for an mLSTM's memory, compiled for an H200",
    "int8": "what int8 weights cost in accuracy",
    "registers": "registers and spills of the kernels for GPUs, compiled without one",
    "devices": "what devices exchange that time is divided over, and their memory",
    "residuals": "memory and time of a gradient, by what is stored for it",
    "abilities": "what one layer of each cell can learn, and up to which length",
    "catalogue": "writes docs/cells.md: every cell in a table",
    "quotes": "puts what the results say into README.md and docs/",
}


def main(argv):
    """Runs a command; its exit status. ``--isa avx2`` holds it to AVX2: see ``shared/held.py``."""
    argv = hold_to(argv)
    name, *rest = argv if argv and not argv[0].startswith("-") else ["sequences", *argv]
    if name not in COMMANDS:
        lines = (f"  {command:<11} {what}" for command, what in COMMANDS.items())
        raise SystemExit("\n".join([f"unknown command {name!r}; the commands are:", *lines]))
    try:
        command = importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("benchmarks"):
            raise
        raise SystemExit(f"{error}: install jaxrnn[bench], or [peers] for the peers") from error
    return command.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
