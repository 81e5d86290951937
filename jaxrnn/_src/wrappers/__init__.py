"""Cells made of other cells: stacks, dropout, learned states, attention over an encoder.

Imports from ``core``, ``ops`` and ``builders``.
"""
