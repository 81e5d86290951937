"""Which builder made a cell.

Cells of one builder go through time by the same code. So what this code has to hold is tried on a
few of them, very different and with all options.
"""

import inspect
import pathlib

import cases
from cases import CELLS

# Where the functions of a cell are written, and of which a row's step and unroll both have to be.
HOMES = {
    "gated": ("gated", "_build"),
    "lifted": ("lifted", "lifted"),
    "diagonal": ("diagonal", "diagonal"),
    "convolved": ("convolved", "convolved"),
    "memory": ("memory", "memory"),
    "attention": ("attention", "attending"),
    "stateless": ("stateless", "stateless"),
    "views": ("views", "views"),
    "cell": ("cell", "cell"),
}
BETWEEN = {"params_tree", "streaming", "compile_once"}  # what all of them are handed through

# Held to all laws. The first of each in more shapes.
REPRESENTATIVES = {
    "gated": (
        "lstm",
        "gru_heads",
        "gru_states",
        "lstm_chunks",
        "peephole",
        "slstm_exp",
        "cfn",
    ),
    "lifted": ("gru_reset_before", "rhn", "conv_lstm"),
    "diagonal": ("gilr", "lru"),
    "convolved": ("conv1d_dilated", "qrnn"),
    "memory": ("retention", "delta_product"),
    "attention": ("attention", "attention_window", "attention_grouped"),
    "stateless": ("project",),
    "views": ("stack", "rg_lru", "dropout_sequence", "parallel_function", "zoneout", "attentive"),
    "cell": ("smooth",),
}


def builder(cell):
    """Its name, or None if step and unroll are not both of one, or handed through other code."""
    found = {_home(function) for function in (cell.step, cell.unroll)}
    return next((name for name, home in HOMES.items() if found == {home}), None)


def _home(function):
    """(module, function) that the innermost function was written in."""
    while True:
        code = getattr(function, "__code__", None)
        inner = getattr(function, "__wrapped__", None)
        if inner is None:
            module = pathlib.Path(inspect.getfile(function)).stem
            return module, function.__qualname__.split(".")[0]
        if code is not None and pathlib.Path(code.co_filename).stem not in BETWEEN:
            return None
        function = inner


MADE_BY = {name: builder(case.make(12)) for name, case in CELLS.items()}
ALONE = tuple(name for name, made in MADE_BY.items() if made is None)
FIRST = (*(names[0] for names in REPRESENTATIVES.values()), "mlstm")
USUAL = (*(name for names in REPRESENTATIVES.values() for name in names), *ALONE)

# Which cells the run is about, and which of them are held to all laws: `pytest --cells`.
FEW = tuple(dict.fromkeys((*FIRST, *ALONE)))
EVERY = FEW if cases.CHOSEN == "few" else tuple(CELLS)
THOROUGH = {"few": FEW, "usual": USUAL, "all": tuple(CELLS)}[cases.CHOSEN]
