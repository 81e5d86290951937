"""Timing: compilation apart from running, warm-up, several calls, median and quartiles."""

import random
import statistics
import sys
import time
from typing import NamedTuple

import jax

# One for all calls: with a generator of its own each would begin with the same few orders.
_shuffle = random.Random(0).shuffle


class Summary(NamedTuple):
    """Median and quartiles of samples: half of them lie between ``low`` and ``high``."""

    median: float
    low: float
    high: float


def summary(samples):
    """The ``Summary`` of one or more numbers."""
    if len(samples) == 1:
        return Summary(*samples * 3)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(median, low, high)


def compiled(function, *args, **options):
    """Compiles ``function`` for ``args``, of which shapes and types are enough.

    Args:
      function: a function of arrays.
      args: what it will be called with, or ``jax.ShapeDtypeStruct``.
      options: for ``jax.jit``.

    Returns:
      The compiled function and the seconds that tracing and compiling took.
    """
    begin = time.perf_counter()
    program = jax.jit(function, **options).lower(*args).compile()
    return program, time.perf_counter() - begin


def wait(result):
    """Until ``result`` is there, of JAX or of PyTorch, whose GPU is waited for as a whole."""
    jax.block_until_ready(result)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def once(call):
    """The seconds until the result of ``call()`` is there."""
    begin = time.perf_counter()
    wait(call())
    return time.perf_counter() - begin


def handed_over(call):
    """The seconds until ``call()`` returns, by when its result need not be there."""
    begin = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - begin
    wait(result)
    return seconds


def batched(call, seconds):
    """So many calls one after another that waiting for the last takes ``seconds`` or more.

    An accelerator works off its queue in order while the host goes on to hand over more. So the
    time of k calls, waited for once, is k times the device's own for one: what events around them
    on the device would read, but for one wait in all. It is the host's time instead where handing
    a call over, 10 to 20 µs and more, takes longer than running it: ``handed_over`` tells.

    Returns:
      A function that makes the calls and gives the last result, and how many it makes.
    """
    count = 1

    def several():
        for _ in range(count):
            result = call()
        return result

    while once(several) < seconds:
        count *= 2
    return several, count


def repeats(seconds_a_call, seconds, least=3, most=50):
    """How many calls fit into ``seconds``, within limits."""
    return max(least, min(most, int(seconds / max(seconds_a_call, 1e-9))))


def measure(call, *, seconds=1.0, rounds=None):
    """Seconds of each of several calls, after one to warm up.

    Args:
      call: a function without arguments.
      seconds: how long to measure, about; it decides how many calls.
      rounds: how many calls, if not as many as fit into ``seconds``.
    """
    once(call)  # the first call of a program also allocates
    samples = [once(call)]
    left = (rounds or repeats(samples[0], seconds)) - 1
    return samples + [once(call) for _ in range(left)]


def interleaved(calls, *, seconds=1.0, rounds=None):
    """Times contenders in turn, so that a change of the machine's pace meets all of them.

    Each round runs every contender, in an order of its own: in a fixed order one of them would
    always find the threads still spinning that another one left. It runs twice, and the second
    call counts: as in a loop of its own, its threads are awake, and its caches and the memory it
    freed are its own. Sample i of one contender and sample i of another come from the same round:
    see ``ratio``.

    Args:
      calls: functions without arguments, by name.
      seconds: how long to measure all of them, about; it decides how many rounds.
      rounds: how many rounds, if not as many as fit into ``seconds``.

    Returns:
      The samples in seconds, one for each round, by name.
    """
    order = list(calls)
    samples = {name: [] for name in order}

    def once_each():
        _shuffle(order)
        for name in order:
            once(calls[name])
            samples[name].append(once(calls[name]))

    once_each()
    first = 2 * sum(s[0] for s in samples.values())
    for _ in range((rounds or repeats(first, seconds)) - 1):
        once_each()
    return samples


def ratio(numerator, denominator):
    """The ``Summary`` of the quotients of two contenders' samples, round by round."""
    return summary([a / b for a, b in zip(numerator, denominator, strict=True)])
