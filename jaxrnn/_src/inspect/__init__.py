"""What shows the insides of a cell: every gate and state, at every step.

Imports from all other rooms; nothing but the public modules imports from here.
"""
