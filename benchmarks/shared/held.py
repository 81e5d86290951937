"""All contenders on one instruction set. Imports nothing that reads the environment before.

XLA's loops are held, but not its large matmuls, which are a library's: they ran at over 330
GFLOP/s where the machine's AVX2 ends at 253 (the ceiling of each row says so). PyTorch is held.
"""

import os

# What each library reads, once, when it is loaded.
VARIABLES = {
    "avx2": {
        "JAXRNN_CPU_ISA": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    },
}


def hold_to(argv, environment=os.environ):
    """``argv`` without ``--isa NAME``, after which libraries loaded use no more than that.

    Raises:
      SystemExit: no such name.
    """
    if "--isa" not in argv:
        return argv
    place = argv.index("--isa")
    name = argv[place + 1] if place + 1 < len(argv) else None
    if name not in VARIABLES:
        raise SystemExit(f"--isa: got {name}, want one of {', '.join(VARIABLES)}")
    for variable, value in VARIABLES[name].items():
        before = environment.get(variable)
        joined = variable == "XLA_FLAGS" and before
        environment[variable] = f"{before} {value}" if joined else value
    return argv[:place] + argv[place + 2 :]


def names(environment=os.environ):
    """The instruction set that all are held to, as a list of one name, or of none."""
    mark = "JAXRNN_CPU_ISA"
    return [name for name, of in VARIABLES.items() if environment.get(mark) == of[mark]]
