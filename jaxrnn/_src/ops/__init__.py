"""Operations: each a contract, a reference, and one implementation for each platform.

Imports from ``core`` alone. Operations know no cell, and cells know no kernel.
"""
