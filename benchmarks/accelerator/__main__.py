"""A process of ``accelerator``: ``python -m benchmarks.accelerator '{...}'``, see ``work``."""

import sys

from benchmarks.accelerator.work import main

main(sys.argv[1])
