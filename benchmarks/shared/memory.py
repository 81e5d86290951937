"""How much memory a compiled program takes."""

NOTE = (
    "arguments, outputs and temporaries of the compiled program, as XLA plans it; null of PyTorch,"
    " which plans nothing"
)


def planned(program):
    """Bytes: arguments, outputs and temporaries, as XLA plans it."""
    sizes = program.memory_analysis()
    outside = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return outside - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes
