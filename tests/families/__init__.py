"""The cells by family: what each one's paper says, in NumPy, and its rows in the tests' table.

A truth is one step of one row, ``(params, state, x) -> (state, y)``: the state a tuple of arrays,
a complex one as two of them, its real and its imaginary part. Everything in it is real and
analytic: see ``truth``.
"""

import importlib
import pathlib

FAMILIES = sorted(path.stem for path in pathlib.Path(__file__).parent.glob("[a-z]*.py"))
ROWS = {
    name: row
    for family in FAMILIES
    for name, row in importlib.import_module(f"families.{family}").ROWS.items()
}
