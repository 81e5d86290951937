"""What jaxrnn is made of. Nothing here is public: import it from ``jaxrnn``.

The rooms, from the bottom up: ``core`` (the cell and its law), ``ops`` (operations and their
kernels), ``builders`` (functions that make cells of equations), ``wrappers`` (cells made of other
cells), ``cells`` (one file a family) and ``inspect``. A room imports from those before it alone.
"""
