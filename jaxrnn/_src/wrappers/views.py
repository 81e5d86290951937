"""What cells made of cells share."""

from jaxrnn._src.core import every_step
from jaxrnn._src.core.options import Options
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.streaming import streamed


def views(run, initial_state, zero=True):
    """Step and unroll of ``run(params, state, x, key, call) -> (state, y)``.

    What ``run`` does itself is elementwise in time, and zero for zeros if ``zero`` says so;
    ``call(cell, params, state, x, key)`` runs a cell.
    """

    def step(params, state, x, key=None):
        return run(params, state, x, key, lambda cell, *args: cell.step(*args))

    def unroll(params, state, xs, options, every=False):
        found = []

        def call(cell, params, state, xs, key):
            own = options.replace(key=key)
            state, ys = every_step.run(cell, params, state, xs, own, every=every)
            if every:
                ys, states = ys
                found.append((states, ys))
            return state, ys

        final, ys = run(params, state, xs, options.key, call)
        ys = ys if zero else select(options.mask, ys, 0)
        if not every:
            return final, ys
        again = iter(found)  # how states of the cells make one of the whole, only `run` knows
        states, _ = run(params, state, xs, options.key, lambda *_: next(again))
        return final, (ys, states)

    def made(params, xs):
        """What the cells make, and their outputs; None if one has to see the whole sequence."""
        found = []

        def call(cell, params, state, xs, key):
            inner = getattr(cell.unroll, "made", lambda params, xs: None)(params, xs)
            state, ys = cell.unroll(params, state, xs, Options(key=key))
            found.append(None if inner is None else (inner, ys))
            return state, ys

        run(params, None, xs, None, call)
        return None if any(one is None for one in found) else found

    return step, streamed(unroll, initial_state, made)
