"""Machine code of kernels, kept on disk: compiling one takes a second or several."""

import contextlib
import functools
import hashlib
import os
import pathlib
import tempfile

import numpy as np

from jaxrnn._src.ops.gpu import compiler


@functools.lru_cache(256)
def machine_code(source: str, architecture: str) -> np.ndarray:
    """As ``compiler.compiled`` makes it, which is asked only if no file has it.

    A file has the hash of what is in it, so one that was cut off is made anew. A folder that
    cannot be written to, or a user without a home, costs the time to compile, and nothing else.
    """
    about = "\0".join([source, architecture, *map(str, compiler.version()), *compiler.OPTIONS])
    name = f"{hashlib.sha256(about.encode()).hexdigest()}.cubin"
    with contextlib.suppress(*_NO_FILE):
        kept = (_folder() / name).read_bytes()
        if hashlib.sha256(kept[_HASH:]).digest() == kept[:_HASH]:
            return np.frombuffer(kept[_HASH:], np.int32)
    code, _ = compiler.compiled(source, architecture)
    with contextlib.suppress(*_NO_FILE):
        _write(_folder() / name, hashlib.sha256(code.tobytes()).digest() + code.tobytes())
    return code


_HASH = 32  # bytes, before the code
_MOST = 1000  # files, of which one has some 100 KB: beyond them the oldest go
_NO_FILE = OSError, RuntimeError  # the latter is what `Path.home` raises where there is none


def _folder():
    """Where programs of a user keep what can be made again."""
    given = os.environ.get("XDG_CACHE_HOME")
    return pathlib.Path(given or pathlib.Path.home() / ".cache", "jaxrnn", "cubins")


def _write(path, content):
    """The old file or the new one, never a part: several processes may be at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    oldest = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-_MOST]
    for file in oldest:
        file.unlink(missing_ok=True)
