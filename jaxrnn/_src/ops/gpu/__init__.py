"""What kernels for NVIDIA GPUs share: which GPU it is, machine code, and the call of a kernel."""
