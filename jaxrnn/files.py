"""Parameters in one file of safetensors, with the call that makes their cell.

    jaxrnn.files.save("model.safetensors", cell, params)
    cell, params = jaxrnn.files.load("model.safetensors")

Arrays stand under their places in the tree, as "0.w"; other programs read them as they read any
such file. What describes the cell is JSON, under "jaxrnn" in the file's metadata. A file can only
call jaxrnn's own constructors, and what the reader gives a name: reading one runs no code of its
writer's.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn._src.core import params_tree
from jaxrnn._src.core.cell import Cell, Made, check_cell, constructor, repr_of
from jaxrnn._src.core.extras import extra
from jaxrnn._src.core.typing import Params

with extra("files", "jaxrnn.files"):
    import safetensors
    import safetensors.numpy

KEY = "jaxrnn"
DTYPES = {
    "BOOL": "bool",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
FORMAT = 1  # raised when an older jaxrnn could not read what is written; absent in 0.1.0's files
# The modules whose constructors a file may call, each imported where a file names it.
ONNX = "jaxrnn.interop.onnx"
MODULES = ("jaxrnn", "jaxrnn.interop", ONNX)
RECORDS = ("jaxrnn.chrono", f"{ONNX}.Activation")  # what cells are made of beside cells
FORMER = {f"{ONNX}.activations.Activation": f"{ONNX}.Activation"}  # names in older files


def save(
    path: str | os.PathLike[str],
    cell: Cell,
    params: Params,
    *,
    names: Mapping[str, Any] | None = None,
) -> None:
    """Writes a cell and its parameters to a file, from which ``load`` makes both again.

    The file is written beside the old one and takes its place when it is whole: whatever happens
    on the way, one of them is there.

    Args:
      path: of the file, as "model.safetensors".
      cell: a ``Cell``. All it was made of is written down as calls of jaxrnn's constructors, with
        numbers, strings, None and tuples.
      params: its parameters: dicts or other mappings, tuples and lists of arrays of any real
        floating, integer or bool type, or complex64. ``load`` makes dicts of mappings.
      names: what else the cell was made of, each under a name for it: constructors and functions
        of your own. ``load`` has to be given them too: a file holds no code.

    Raises:
      TypeError: the cell is made of something that has no name, or ``params`` hold something else
        than arrays of these types.
      ValueError: ``params`` are not those of the cell.

    >>> import tempfile
    >>> import jaxrnn.files
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/model.safetensors"
    >>> cell = jaxrnn.stack(jaxrnn.lstm(4), jaxrnn.dropout(0.1), jaxrnn.project(2))
    >>> jaxrnn.files.save(path, cell, cell.init(jax.random.key(0), 3))
    >>> cell, params = jaxrnn.files.load(path)
    >>> cell, params["2"]["w"].shape
    (stack(lstm(hidden=4), dropout(rate=0.1), project(hidden=2)), (4, 2))

    A function of your own gets a name:

    >>> def cube(x):
    ...     return x**3
    >>> cell = jaxrnn.elman(4, activation=cube)
    >>> jaxrnn.files.save(path, cell, cell.init(jax.random.key(0), 3), names={"cube": cube})
    >>> jaxrnn.files.load(path, names={"cube": cube})[0]
    elman(hidden=4, activation=cube)
    >>> folder.cleanup()
    """
    check_cell("cell", cell)
    params = params_tree.dicts(params)
    contents, arrays = {"cell": _described(cell, cell, names or {})}, {}
    contents["format"] = FORMAT
    contents["params"] = _outline(params, (), arrays)
    _check_fits(cell, params)
    contents["sha256"] = _digest(contents, arrays)
    _write(path, safetensors.numpy.save(arrays, {KEY: json.dumps(contents)}))


def load(
    path: str | os.PathLike[str], *, names: Mapping[str, Any] | None = None
) -> tuple[Cell, Params]:
    """Makes a cell and its parameters of a file that ``save`` wrote.

    Args:
      path: of the file.
      names: what ``save`` was given.

    Returns:
      ``(cell, params)``: a cell equal to the one that was saved, and the same bits.

    Raises:
      ValueError: the file is not whole, was not written by ``save``, or is not as it was written;
        the cell is made of something that has no name here, or the parameters are not those of
        the cell; an array has a type that JAX does not have now, as float64 without
        ``jax_enable_x64``. The error names the file.
      OSError: there is no such file, or it cannot be read.

    See ``save`` for an example.
    """
    data = pathlib.Path(path).read_bytes()
    try:
        contents, arrays = _parsed(data)
        cell = _made(contents["cell"], names or {})
        if not isinstance(cell, Cell):
            raise ValueError(f"it describes {cell!r}, want a Cell")
        params = _tree(contents["params"], arrays)
        _check_fits(cell, params)
        return cell, params
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _described(value, cell, names):
    """What JSON says of a value that ``cell`` was made of."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) is tuple:
        return [_described(one, cell, names) for one in value]
    known = _name(value, names)
    if known is not None:
        return {"name": known}
    made = _call(value)
    if isinstance(value, Cell) and made is None:
        hint = "decorate what builds it with jaxrnn.constructor"
        raise TypeError(f"cell: got {value}, want one that a constructor made: {hint}")
    known = None if made is None else _name(made.constructor, names)
    if made is None or known is None:
        came = repr_of(value) if made is None else repr(made.constructor)
        want = "jaxrnn's own constructors, numbers, strings, None and tuples"
        hint = f"give it a name, here and to load: names={{'...': {came}}}"
        raise TypeError(f"cell: got {came} in {cell}, want {want}; {hint}")
    return {
        "call": known,
        "args": [_described(one, cell, names) for one in made.args],
        "kwargs": {name: _described(one, cell, names) for name, one in made.kwargs},
    }


def _call(value):
    """The call that makes a value, of what can say."""
    if isinstance(value, Cell):
        return value.made
    if _path(type(value)) in RECORDS:
        return Made(type(value), (), tuple(dataclasses.asdict(value).items()))


def _name(value, names):
    """The name of a constructor or a record: jaxrnn's own by their paths, others as given."""
    path = _path(value)
    if path is not None and own(path) is value:
        return path
    given = ((name, one) for name, one in names.items() if own(name) is None)
    return next((name for name, one in given if one is value or one == value), None)


def _path(value):
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    return f"{module}.{name}" if module in MODULES else None


@functools.cache
def own(path: str) -> Any:
    """One of jaxrnn's constructors or records, by its public path; None of any other path."""
    path = FORMER.get(path, path)
    module, _, name = path.rpartition(".")
    if path == f"{ONNX}.onnx_gru":
        return _onnx_gru
    value = getattr(importlib.import_module(module), name, None) if module in MODULES else None
    return value if isinstance(value, constructor) or path in RECORDS else None


def _onnx_gru(hidden, *, activations, reset_after):
    """Of files that 0.1.0 wrote: ``jaxrnn.gru`` takes activations since."""
    gate, candidate = activations
    return jaxrnn.gru(hidden, reset_after=reset_after, activation=candidate, gate_activation=gate)


def _made(value, names):
    """The value that JSON describes."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case [*several]:
            return tuple(_made(one, names) for one in several)
        case {"name": str(name)}:
            return _named(name, names)
        case {"call": str(name), "args": [*args], "kwargs": dict(kwargs)}:
            make = _named(name, names)
            args = [_made(one, names) for one in args]
            kwargs = {key: _made(one, names) for key, one in kwargs.items()}
            try:
                return make(*args, **kwargs)
            except Exception as error:  # whatever is wrong with what the file says
                raise ValueError(f"its {name} cannot be made: {error}") from error
    raise ValueError(f"it describes no cell: {value!r}")


def _named(name, names):
    found = own(name) or names.get(name)
    if found is None:
        given = sorted(names)
        raise ValueError(f"it is made of {name!r}, want jaxrnn's own or one of names={given}")
    return found


def _outline(tree, path, arrays):
    """The tree with names in place of its arrays, which are put into ``arrays``."""
    one = lambda key, value: _outline(value, (*path, str(key)), arrays)
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {key: one(key, value) for key, value in tree.items()}
    if type(tree) in (tuple, list):
        return [type(tree).__name__, *(one(i, value) for i, value in enumerate(tree))]
    where = "params" + "".join(f"[{key!r}]" for key in path)
    if not isinstance(tree, jax.Array | np.ndarray):
        came, want = type(tree).__name__, "an array, or a dict, tuple or list of them"
        raise TypeError(f"{where}: got {came}, want {want}")
    if tree.dtype.name not in DTYPES.values():
        raise TypeError(f"{where}: got {tree.dtype}, want one of {tuple(DTYPES.values())}")
    name = ".".join(path)
    if name in ("", "__metadata__", *arrays):
        raise ValueError(f"{where}: its name in a file, {name!r}, is taken")
    arrays[name] = np.asarray(tree, tree.dtype.name, order="C")
    return name


def _tree(outline, arrays):
    """The tree of an outline, with JAX's arrays."""
    match outline:
        case str(name) if name in arrays:
            dtype = arrays[name].dtype
            if jax.dtypes.canonicalize_dtype(dtype) != dtype:
                raise ValueError(f"{name} is {dtype}, want jax_enable_x64 for it")
            return jnp.array(arrays[name])
        case dict():
            return {key: _tree(one, arrays) for key, one in outline.items()}
        case ["tuple" | "list" as kind, *several]:
            return {"tuple": tuple, "list": list}[kind](_tree(one, arrays) for one in several)
    raise ValueError(f"it describes no parameters: {outline!r}")


def _parsed(data):
    """What the bytes of a file say: the description, and arrays by name."""
    try:
        views = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a whole safetensors file: {error}") from None
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    try:
        contents = json.loads(json.loads(header.decode())["__metadata__"][KEY])
        digest = contents.pop("sha256")
        _ = contents["cell"], contents["params"]
        written = int(contents.get("format", 0))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("it describes no cell, as jaxrnn.files.save does") from None
    if written > FORMAT:
        raise ValueError(
            f"a newer jaxrnn wrote it, in format {written}; {jaxrnn.__version__} reads formats up"
            f" to {FORMAT}"
        )
    arrays = {name: _array(name, view) for name, view in views}
    if digest != _digest(contents, arrays):
        raise ValueError("it is damaged or was changed: it says something else than was saved")
    return contents, arrays


def _array(name, view):
    if view["dtype"] not in DTYPES:
        raise ValueError(f"{name} is {view['dtype']}, want one of {tuple(DTYPES)}")
    return np.frombuffer(view["data"], jnp.dtype(DTYPES[view["dtype"]])).reshape(view["shape"])


def _digest(contents, arrays):
    """Of all that a file says. The format itself has no checksum."""
    digest = hashlib.sha256(json.dumps(contents).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _check_fits(cell, params):
    """Parameters have all that the cell makes, in the shapes that no input's size changes."""
    made = lambda size: jax.eval_shape(lambda key: cell.init(key, size), jax.random.key(0))
    for sizes in ((1, 2), (None, None)):
        try:
            one, two = map(made, sizes)
            break
        except (TypeError, ValueError):
            continue
    else:
        return  # it wants a certain size
    came = dict(jax.tree_util.tree_leaves_with_path(params))
    wanted = zip(*map(jax.tree_util.tree_leaves_with_path, (one, two)))
    for (path, first), (_, second) in wanted:
        name = f"params{jax.tree_util.keystr(path)}"
        if path not in came:
            raise ValueError(f"{name}: got none, want that of {cell}")
        if first.shape == second.shape != jnp.shape(came[path]):
            got = jnp.shape(came[path])
            raise ValueError(f"{name}: got shape {got}, want {first.shape}: {cell}")


def _write(path, data):
    """Puts a file in the place of another, at once."""
    path = pathlib.Path(os.path.realpath(path))  # through links, to where the file itself is
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
