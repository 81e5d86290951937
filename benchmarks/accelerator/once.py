"""Work that several threads ask for, and one does."""

import functools
import threading


def once(keep):
    """``function``, run once for equal arguments; ``keep`` results are kept, None for all.

    Who asks while another is at it waits for that result.
    """

    def wrap(function):
        locks, kept = {}, functools.lru_cache(keep)(function)

        @functools.wraps(function)
        def call(*args):
            with locks.setdefault(args, threading.Lock()):
                return kept(*args)

        return call

    return wrap
