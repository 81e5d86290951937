"""Benchmarks of jaxrnn: ``python -m benchmarks --help``."""
