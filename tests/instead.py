"""What a test puts in place of a part of the library, with JAX's caches told of it."""

import contextlib

import jax
import pytest

_KNOWN = jax.make_user_context(())  # a key of all caches, so that none has to be cleared


@contextlib.contextmanager
def instead(*replacements):
    """Inside, in all threads, each ``(module, name, value)`` is there instead of what was."""
    before = _KNOWN.get_global()
    with pytest.MonkeyPatch.context() as patch:
        for replacement in replacements:
            patch.setattr(*replacement)
        _KNOWN.set_global((*before, *replacements))
        try:
            yield
        finally:
            _KNOWN.set_global(before)
