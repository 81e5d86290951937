"""A row of the tests' table."""

from typing import NamedTuple

from jaxrnn._src.ops import native

NO_KERNEL = native.library().missing  # why there is none for this CPU, or None
RECUR = ("xla",) if NO_KERNEL else ("cpu", "xla")  # what runs a gated cell here
LIFTED = ("xla",)  # and one that is not
PARTS = RECUR[:1]  # and one whose step is made of parts; a few say RECUR, for XLA's loop too
LINEAR = RECUR  # and one of a linear recurrence


class Case(NamedTuple):
    make: object  # hidden -> Cell
    truth: object = None  # a step or a whole row in NumPy, None where other rows are the truth
    faster: tuple = RECUR  # its implementations on a CPU, beside the reference
    heads: int = 1  # `hidden` has to be a multiple of it
    inputs: int | None = None  # so many inputs, whatever the shape says
    cut: bool = False  # its gradients are not those of the scan of its step
    whole: bool = False  # has no step, as it has to see the whole sequence
