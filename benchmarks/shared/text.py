"""Real English text that comes with Python: its help topics, as bytes."""

import functools
from pydoc_data.topics import topics

import numpy as np


@functools.cache
def english():
    """All of the text, uint8 [about 470,000]."""
    return np.frombuffer("\n".join(topics.values()).encode(), np.uint8)


def windows(length, batch):
    """``batch`` windows of ``length`` bytes, evenly spread over the text, and what follows.

    Returns:
      ``(inputs, targets)``, int32 [length, batch] each: the target is the byte after the input.
      A window that runs over the end of the text goes on at its beginning.
    """
    text = english()
    first = np.arange(batch) * len(text) // batch
    at = (np.arange(length + 1)[:, None] + first) % len(text)
    window = text[at].astype(np.int32)
    return window[:-1], window[1:]
