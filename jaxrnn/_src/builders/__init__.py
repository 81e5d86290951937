"""What makes a cell of its equation, by the form that the equation has.

Imports from ``core`` and ``ops``. Every cell comes from one of these, or is made of other cells.
"""
