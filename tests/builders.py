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
    "stateless": ("stateless", "stateless"),
    "views": ("wrap", "views"),
    "cell": ("cell", "cell"),
}
BETWEEN = {"mappings", "pieces", "once"}  # what all of them are handed through

# Held to all laws. The first of each in all shapes; the others take turns.
REPRESENTATIVES = {
    "gated": (
        "lstm", "gru", "elman", "mgu", "lstm_states", "lstm_chunks", "lstm_heads", "gru_states",
        "gru_heads", "peephole", "candidate_first", "slstm_exp", "cfn", "lstm_everything",
    ),
    "lifted": ("gru_reset_before", "rhn", "conv_lstm", "sru_project", "layer_norm_gru"),
    "diagonal": ("gilr", "lru", "min_lstm"),
    "convolved": ("conv1d", "conv1d_dilated", "conv1d_of_one", "qrnn"),
    "stateless": ("project",),
    "views": (
        "stack", "rg_lru", "dropout", "dropout_sequence", "transformer_block", "parallel_function",
        "zoneout", "zoneout_lifted", "recurrent_dropout_sequence", "variational_dropout",
        "weight_dropout", "attentive", "highway",
    ),
    "cell": ("smooth",),
}  # fmt: skip


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
FIRST = (*(names[0] for names in REPRESENTATIVES.values()), *ALONE)  # in all shapes
USUAL = (*(name for names in REPRESENTATIVES.values() for name in names), *ALONE)

# Which cells the run is about, and which of them are held to all laws: `pytest --cells`.
EVERY = FIRST if cases.CHOSEN == "few" else tuple(CELLS)
THOROUGH = {"few": FIRST, "usual": USUAL, "all": tuple(CELLS)}[cases.CHOSEN]
