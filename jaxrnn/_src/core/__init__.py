"""The cell, its law, and what every cell needs: checks, parameters, sequences, dispatch.

Imports nothing else of jaxrnn. All other rooms import from here.
"""
