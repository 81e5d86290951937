"""Weights from and to PyTorch: its RNN, LSTM and GRU, as modules or as state_dicts."""

import importlib
import re
import sys
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxrnn._src.cells.elman import elman
from jaxrnn._src.cells.gru import gru
from jaxrnn._src.cells.lstm import lstm
from jaxrnn._src.core import checks, params_tree
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import Params, Theirs
from jaxrnn._src.wrappers import stack
from jaxrnn.interop import biases
from jaxrnn.interop.layers import (
    both,
    check,
    ends,
    is_a,
    layers,
    name_of,
    one_bias,
    only,
    options,
    stacked,
)

_NAME = re.compile(r"((?:weight|bias)_(?:ih|hh|hr))(?:_l(\d+)(_reverse)?)?")
_NORMED = re.compile(  # of weight_norm, as it was and as it is
    r"(weight_\w+)_[gv]|parametrizations\.(weight_\w+)\.original[01]"
)
_WITHIN = re.compile(rf"(?:parametrizations\.)?{_NAME.pattern}(?:_[gv]|\..*)?")
_DEEP = re.compile(rf"(?:(.*?)\.)??{_WITHIN.pattern}")
_KINDS = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
_MODES = {1: "RNN", 3: "GRU", 4: "LSTM"}  # by the number of gates
_PRODUCTS = {"w": "ih", "r": "hh"}
_NONLINEARITIES = ("tanh", "relu")


def from_torch(
    source: Theirs,
    *,
    prefix: str = "",
    double_bias: bool = False,
    nonlinearity: Literal["tanh", "relu"] | None = None,
    dropout: float | None = None,
) -> tuple[Cell, Params]:
    """A cell with the weights of a recurrent module of PyTorch's.

    Args:
      source: a ``torch.nn.RNN``, ``LSTM``, ``GRU``, ``RNNCell``, ``LSTMCell`` or ``GRUCell``, of
        any number of layers and directions, with or without biases and projection; or the
        ``state_dict`` of one, a mapping from names to tensors or NumPy arrays. ``batch_first``
        does not matter: here time leads. A weight under ``weight_norm`` becomes the weight that
        it stands for.
      prefix: of the names in a ``state_dict``, which may be that of a whole model: the name of
        the module in it, as "encoder.rnn". What ``DataParallel`` and ``torch.compile`` put before
        all names, "module." and "_orig_mod.", is left aside.
      double_bias: whether PyTorch's two biases stay apart, ``jaxrnn.interop.double_bias``. One
        computes the same, but trains otherwise.
      nonlinearity: of the ``state_dict`` of an ``RNN``, which does not say it: "tanh" or "relu".
      dropout: of a ``state_dict``, which does not say it: the rate between its layers; None for
        no dropout.

    Returns:
      ``(cell, params)``: an ``elman``, ``lstm`` or ``gru``; of two directions ``bidirectional`` of
      it, of several layers a ``stack`` of these, with ``jaxrnn.dropout`` between them; without
      biases each is in ``jaxrnn.interop.without_bias``. PyTorch's final states, [L * D, B, H],
      are h of all layers and directions, and c; here each cell has its own (h, c).

    Raises:
      TypeError: ``source`` is none of these.
      ValueError: a name or shape in it is not of such a module; nothing in it has the prefix, and
        which prefixes there are; ``nonlinearity`` is missing, or it or ``dropout`` is given where
        ``source`` says it.

    >>> import torch
    >>> import jaxrnn.interop
    >>> module = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True, dropout=0.5)
    >>> cell, params = jaxrnn.interop.from_torch(module)
    >>> for layer in cell.made.args:
    ...     print(layer)
    bidirectional(forward=lstm(hidden=4))
    dropout(rate=0.5)
    bidirectional(forward=lstm(hidden=4))
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))[1].shape
    (5, 2, 8)
    """
    if not isinstance(source, Mapping):
        given = {"prefix": prefix or None, "nonlinearity": nonlinearity, "dropout": dropout}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}: got {value!r} and a module, want None: it says its own")
        torch = sys.modules.get("torch")
        kinds = [getattr(torch.nn, kind) for kind in _KINDS] if torch else []
        if not any(getattr(type(source), "forward", None) is kind.forward for kind in kinds):
            want = f"one of torch.nn's {_KINDS}, with their own forward, or a state_dict"
            raise TypeError(f"source: got {type(source).__name__}, want {want}")
        nonlinearity = getattr(source, "nonlinearity", None)
        dropout = getattr(source, "dropout", 0.0)
        source = source.state_dict()
    elif dropout is not None:
        dropout = checks.probability("dropout", dropout)
    pairs = []
    for directions in _by_layer(_merged(_selected(source, prefix))):
        made = [_cell(weights, nonlinearity, double_bias) for weights in directions]
        if pairs and dropout:
            pairs.append((stack.dropout(dropout), {}))
        pairs.append(both(made[0], made[1]) if len(made) == 2 else made[0])
    cell, params = stacked(pairs)
    check(cell, params)
    return cell, params


def _by_layer(source):
    """The arrays of a state_dict: for each layer, for each direction, a dict."""
    found = {}
    for name, value in source.items():
        match = _NAME.fullmatch(name)
        if match is None:
            want = "names as 'weight_ih_l0', of one RNN, LSTM or GRU; of weights that are made of"
            want += " others, only those of weight_norm: remove_parametrizations first"
            raise ValueError(f"source: got {name!r}, want {want}")
        array, layer, reverse = match.groups()
        found.setdefault((int(layer or 0), bool(reverse)), {})[array] = _numpy(name, value)
    directions = 1 + any(reverse for _, reverse in found)
    count = len(found) // directions
    wanted = [(layer, bool(way)) for layer in range(count) for way in range(directions)]
    types = {str(a.dtype) for arrays in found.values() for a in arrays.values()}
    if len(types) > 1:
        raise ValueError(f"source: got the types {sorted(types)}, want one")
    once = sum(map(len, found.values())) == len(source)
    if not found or not once or sorted(found) != wanted:
        want = "all layers from l0 on, each in the same directions"
        raise ValueError(f"source: got {sorted(source)}, want {want}")
    kept = {frozenset(arrays) for arrays in found.values()}
    required, pair, optional = {"weight_ih", "weight_hh"}, {"bias_ih", "bias_hh"}, {"weight_hr"}
    for names in kept:
        if len(kept) > 1 or names - optional not in (required, required | pair):
            want = "in each layer weight_ih and weight_hh, and both biases or none"
            raise ValueError(f"source: got {sorted(source)}, want {want}")
    ways = range(directions)
    return [[found[layer, bool(way)] for way in ways] for layer in range(count)]


def _selected(source, prefix):
    """What a state_dict has under a prefix, by names without it."""
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: got {prefix!r}, want a string, as 'encoder.rnn'")
    bare = lambda name: re.sub(r"^(?:module\.|_orig_mod\.)+", "", name)
    before = f"{bare(prefix).removesuffix('.')}." if bare(prefix) else ""
    named = {bare(name): value for name, value in source.items()}
    found = {n.removeprefix(before): a for n, a in named.items() if n.startswith(before)}
    if not found and not before:
        return found
    if not any(_WITHIN.fullmatch(name) for name in found):
        matches = filter(None, map(_DEEP.fullmatch, named))
        prefixes = sorted({match[1] or "" for match in matches})
        raise ValueError(
            f"prefix: got {prefix!r}, want one of {prefixes}, those of RNNs in source"
        )
    return found


def _merged(source):
    """Weights under ``weight_norm``, a size g and a direction v, as they are: g v / |v|."""
    weights = {}
    for name, value in source.items():
        match = _NORMED.fullmatch(name)
        if match is None:
            weights[name] = value
            continue
        before, ends = (match[1], ("_g", "_v")) if match[1] else (name[:-1], ("0", "1"))
        size, way = (before + end for end in ends)
        if size not in source or way not in source:
            raise ValueError(f"source: got {name!r} alone, want {size!r} and {way!r}")
        g, v = _array(source[size]), _array(source[way])
        dtype, g, v = v.dtype, g.astype("float64"), v.astype("float64")
        axes = tuple(i for i in range(v.ndim) if g.ndim == 0 or g.shape[i] == 1)
        norm = np.sqrt(np.square(v).sum(axes, keepdims=True))
        weights[match[1] or match[2]] = (g * v / norm).astype(dtype)
    return weights


def _array(value):
    """A tensor or array as one of NumPy's."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        narrow = str(value.dtype) == "torch.bfloat16"  # which it can't give NumPy
        value = value.float().numpy().astype(jnp.bfloat16) if narrow else value.numpy()
    return np.asarray(value)


def _numpy(name, value):
    """A tensor or array as one of NumPy's, of the rank that one of its name has."""
    value, rank = _array(value), 1 if name.startswith("bias") else 2
    if value.ndim != rank or not value.size:
        raise ValueError(f"source[{name!r}]: got shape {value.shape}, want {rank} axes, not empty")
    checks.check_floating(f"source[{name!r}]", value)
    return value


def _cell(weights, nonlinearity, double):
    """The cell and its parameters of one layer in one direction."""
    w, r = weights["weight_ih"], weights["weight_hh"]
    p = weights.get("weight_hr")
    rows, hidden = w.shape[0], (r if p is None else p).shape[1]
    gates = rows // hidden
    shapes = {"weight_ih": w.shape, "weight_hh": (rows, hidden)}
    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if p is not None:
        shapes |= {"weight_hh": (rows, p.shape[0]), "weight_hr": (p.shape[0], hidden)}
    known = gates in _MODES and rows == gates * hidden and (p is None or gates == 4)
    if not known or any(a.shape != shapes[name] for name, a in weights.items()):
        came = {name: a.shape for name, a in weights.items()}
        want = "[G * H, ...] with G = 1 of an RNN, 3 of a GRU, 4 of an LSTM"
        raise ValueError(f"source: got {came}, want {want}")
    if gates == 1 and nonlinearity not in _NONLINEARITIES:
        want = f"one of {_NONLINEARITIES}: the state_dict of an RNN does not say it"
        raise ValueError(f"nonlinearity: got {nonlinearity!r}, want {want}")
    if gates != 1 and nonlinearity is not None:
        want = f"None: source is one of {_MODES[gates]}"
        raise ValueError(f"nonlinearity: got {nonlinearity!r}, want {want}")
    weights = {name: jnp.array(a) for name, a in weights.items()}
    params = {name: _from_rows(weights[f"weight_{of}"], gates) for name, of in _PRODUCTS.items()}
    if gates == 1:
        assert nonlinearity is not None  # one of two
        cell = elman(hidden, activation=nonlinearity)
    elif gates == 3:
        cell = gru(hidden)
    else:
        cell = lstm(hidden, projection=None if p is None else p.shape[0])
        params |= {} if p is None else {"p": weights["weight_hr"].T}
    if "bias_ih" not in weights:
        cell = biases.without_bias(cell)
    else:
        b, rb = (weights[name].reshape(gates, hidden) for name in ("bias_ih", "bias_hh"))
        if double:
            cell, params = biases.double_bias(cell), params | {"b": b, "rb": rb}
        else:
            params |= biases.summed(b, rb, candidate=gates == 3)
    return cell, params


def to_torch(cell: Cell, params: Params) -> Theirs:
    """A module of PyTorch's with the weights of a cell; its ``state_dict()`` is the other form.

    Args:
      cell: an ``elman`` ("tanh" or "relu"), ``lstm`` (also with ``projection``) or ``gru``;
        ``bidirectional`` of one; a ``stack`` of layers that are alike, with ``jaxrnn.dropout``
        of one rate between all of them, or nowhere. ``double_bias`` and ``without_bias`` are
        known.
      params: its parameters.

    Returns:
      A ``torch.nn.RNN``, ``LSTM`` or ``GRU`` on the CPU, in the parameters' type; time leads, as
      here. The bias of a cell with one is PyTorch's ``bias_ih``, and its ``bias_hh`` is zero, but
      for what is ``rb`` in a GRU.

    Raises:
      ValueError: the cell has no counterpart, and why; the parameters are not its own.

    >>> import torch
    >>> import jaxrnn.interop
    >>> cell = jaxrnn.stack(jaxrnn.gru(4), jaxrnn.dropout(0.5), jaxrnn.gru(4))
    >>> jaxrnn.interop.to_torch(cell, cell.init(jax.random.key(0), 3))
    GRU(3, 4, num_layers=2, dropout=0.5)
    """
    # Where it is not installed, a type checker takes `import torch` for this file.
    torch: Theirs = importlib.import_module("torch")

    params = params_tree.dicts(params)
    dtype = check(cell, params)
    rate, pairs = _without_dropout(cell, layers(cell, params))
    for layer, _ in pairs:
        if is_a(layer, stack.bidirectional):
            only("PyTorch", layer, merge="concat")
    directions = [ends(*pair) for pair in pairs]
    forms = [_form(one) for layer in directions for one, _ in layer]
    if len({len(layer) for layer in directions}) > 1 or any(form != forms[0] for form in forms):
        raise ValueError(f"cell: got {cell}, want layers that are alike: PyTorch has no other")
    name, hidden, count, given = forms[0]
    weights = {
        f"{array}_l{i}{way}": torch.tensor(np.asarray(a, _exact(a.dtype)))
        for i, layer in enumerate(directions)
        for way, (_, own) in zip(("", "_reverse"), layer)
        for array, a in _arrays(own, count).items()
    }
    module = getattr(torch.nn, name)(
        weights["weight_ih_l0"].shape[1],
        hidden,
        num_layers=len(pairs),
        bias=count > 0,
        dropout=rate,
        bidirectional=len(directions[0]) == 2,
        dtype=getattr(torch, dtype),
        **given,
    )
    module.load_state_dict(weights)
    return module


def _without_dropout(cell, pairs):
    """The rate of the dropout between layers, and the layers."""
    drops = [one for one, _ in pairs if is_a(one, stack.dropout)]
    rest = [pair for pair in pairs if not is_a(pair[0], stack.dropout)]
    if not drops:
        return 0.0, rest
    if [is_a(one, stack.dropout) for one, _ in pairs] != ([False, True] * len(rest))[:-1] or any(
        options(drop) != {"rate": options(drops[0])["rate"], "per": "step"} for drop in drops
    ):
        want = "dropout of one rate, for each step, between all layers or nowhere, as in PyTorch"
        raise ValueError(f"cell: got {cell}, want {want}")
    return options(drops[0])["rate"], rest


def _form(cell):
    """What PyTorch calls a cell: its module, H, how many biases, and other options."""
    cell, count = one_bias(cell)
    if is_a(cell, elman):
        only("PyTorch", cell, heads=1)
        nonlinearity = name_of(options(cell)["activation"])
        if nonlinearity not in _NONLINEARITIES:
            want = f"an activation of {_NONLINEARITIES}: PyTorch has no other"
            raise ValueError(f"cell: got {cell}, want {want}")
        name, given = "RNN", {"nonlinearity": nonlinearity}
    elif is_a(cell, gru):
        only("PyTorch", cell, heads=1, reset_after=True)
        only("PyTorch", cell, activation="tanh", gate_activation="sigmoid")
        name, given = "GRU", {}
    elif is_a(cell, lstm):
        only("PyTorch", cell, heads=1, peepholes=False, coupled=False, cell_clip=None)
        only("PyTorch", cell, activation="tanh", gate_activation="sigmoid")
        projection, hidden = options(cell)["projection"], options(cell)["hidden"]
        if projection is not None and projection >= hidden:
            raise ValueError(f"cell: got {cell}, want projection < hidden: PyTorch has no other")
        name, given = "LSTM", {"proj_size": int(projection or 0)}
    else:
        want = "elman, lstm or gru, bidirectional or not, and stacks of them with dropout between"
        raise ValueError(f"cell: got {cell}, want {want}: PyTorch has no other")
    return name, int(options(cell)["hidden"]), count, given


def _arrays(params, count):
    """PyTorch's arrays, by name, of the parameters of a cell with so many biases."""
    arrays = {"weight_ih": _to_rows(params["w"]), "weight_hh": _to_rows(params["r"])}
    if "p" in params:
        arrays["weight_hr"] = params["p"].T
    if count:
        b, rb = biases.parted(params)
        arrays |= {"bias_ih": b.reshape(-1), "bias_hh": rb.reshape(-1)}
    return arrays


def _exact(dtype):
    """A type of NumPy's own that holds the values of another."""
    return np.float32 if dtype == jnp.bfloat16 else dtype


def _from_rows(a, gates):
    """[G * H, K] -> [K, G, H]"""
    return a.reshape(gates, -1, a.shape[1]).transpose(2, 0, 1)


def _to_rows(a):
    """[K, G, H] -> [G * H, K]"""
    return a.transpose(1, 2, 0).reshape(-1, a.shape[0])
