"""The cells: one short file a family, the paper in the docstring."""
