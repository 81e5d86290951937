"""The input's part of the gates, made before the loop: for a piece of a long sequence at a time.

What is kept for a gradient is as large, so then it is made for all steps at once.
"""

import math

from jaxrnn._src.core import streaming


def in_pieces(forward, problem, operands, wanted, save, target):
    """What ``forward`` gives, which makes the input's part of the gates of all its steps."""
    steps, *batch, _ = operands.xs.shape
    gates = math.prod(operands.w.shape[1:]) * operands.state[0].dtype.itemsize
    made = math.prod(batch) * gates // target.devices
    size = None if save else streaming.size(steps, made)
    if size is None:
        return forward(problem, operands, wanted, save, target)

    def some(state, part):
        given = operands._replace(state=state, **part)
        out = forward(problem, given, wanted, save, target)
        return tuple(out[: problem.states]), out[problem.states :]

    timed = {"xs": operands.xs, "mask": operands.mask, "starts": operands.starts}
    state, ys = streaming.run(some, operands.state, timed, size, reverse=problem.reverse)
    return [*state, *ys]
