"""Equinox's layers as ours, one after the other: those of a list, a Sequential, a whole model."""

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.builders.stateless import layer_norm, project, rms_norm
from jaxrnn._src.cells.embedding import embedding
from jaxrnn._src.cells.gru import gru
from jaxrnn._src.cells.lstm import lstm
from jaxrnn._src.core.cell import Cell, unroll
from jaxrnn._src.core.checks import described
from jaxrnn._src.core.typing import InputArray, Params, Theirs
from jaxrnn._src.wrappers.stack import dropout
from jaxrnn.interop.layers import name_of
from jaxrnn.interop.layout import Layout, joined, split, to_params

Pair = tuple[Cell, Params]


def rows(gates: int, own: tuple[tuple[str, str], ...] = ()) -> Layout:
    """Kernels [G * H, I] and a bias [G * H]; ``own`` are our name and theirs of another bias."""

    def ours(arrays):
        of_gates = lambda name: split(arrays[name].T, gates)
        params = {
            "w": of_gates("weight_ih"),
            "r": of_gates("weight_hh"),
            "b": split(arrays["bias"], gates),
        }
        return params | {name: arrays[their] for name, their in own}

    def theirs(params):
        w, r, b = (joined(params[name]) for name in "wrb")
        arrays = {"weight_ih": w.T, "weight_hh": r.T, "bias": b}
        return arrays | {their: params[name] for name, their in own}

    return Layout(ours, theirs)


LAYOUTS: dict[Any, Layout] = {lstm: rows(4), gru: rows(3, (("rb", "bias_n"),))}


def _renamed(**names: str) -> Layout:
    """Our names of arrays and theirs; a matrix is the other's transpose."""
    return Layout(
        lambda arrays: {ours: arrays[theirs].T for ours, theirs in names.items()},
        lambda params: {theirs: params[ours].T for ours, theirs in names.items()},
    )


def of_layers(source: Theirs, name: str = "module") -> list[Pair]:
    """Pairs of a cell and its parameters, from the first layer of ``source`` to the last.

    Args:
      source: one layer, or several in a list, a tuple or an ``equinox.nn.Sequential``.
      name: of ``source``, in errors.
    """
    return _paired(_listed(source, name, own=False))


def of_model(module: Theirs) -> list[Pair]:
    """The same of a module of the user's: of the layers in its fields, in their order."""
    return _paired(_listed(module, "module", own=True))


def is_own(module: Theirs) -> bool:
    """Whether it is a module, but none of Equinox's or of ours."""
    equinox = _equinox()
    ours = type(module).__module__.partition(".")[0] in ("equinox", "jaxrnn")
    return isinstance(module, equinox.Module) and not ours


def check_same(module: Theirs, cell: Cell, params: Params, xs: InputArray) -> None:
    """Raises a ValueError if a model gives other numbers than the cell that it became."""
    with jax.default_matmul_precision("highest"):
        want = module(xs)
        _, ys = unroll(cell, params, xs)
    hand_in = "hand in a list of its layers in the order in which they run"
    of = f"xs: got {described(xs)}, of which the {type(module).__name__} makes"
    if jnp.shape(want) not in (ys.shape, ys.shape[1:]):
        raise ValueError(f"{of} {described(want)}, want {ys.shape} or {ys.shape[1:]}: {hand_in}")
    ys = ys if want.shape == ys.shape else ys[-1]
    most = max(float(jnp.finfo(a.dtype).eps) for a in (want, ys)) ** 0.5
    came, true = (np.asarray(a, np.float64) for a in (ys, want))
    apart = np.abs(came - true).max(initial=0) / max(np.abs(true).max(initial=0), 1)
    if not apart <= most:
        want = f"those of {cell}, which are off by {apart:.1g}"
        raise ValueError(f"{of} other numbers, want {want}: {hand_in}")


def _equinox() -> Theirs:
    # Where it is not installed, a type checker takes `import equinox` for this file.
    return importlib.import_module("equinox")


def _listed(source: Theirs, name: str, own: bool) -> Iterator[tuple[str, Theirs]]:
    """All layers with their names; ``own`` are modules whose fields hold layers."""
    equinox = _equinox()
    nn = equinox.nn
    if isinstance(source, nn.Sequential):
        source = source.layers
    if isinstance(source, (list, tuple)):
        for i, one in enumerate(source):
            yield from _listed(one, f"{name}[{i}]", own)
    elif type(source) is nn.MLP:
        yield from _of_mlp(nn, source, name)
    elif own and is_own(source):
        for field in dataclasses.fields(source):
            yield from _listed(getattr(source, field.name), f"{name}.{field.name}", own)
    elif own and equinox.is_array(source):
        want = "it in a layer: a list of layers leaves it out"
        raise ValueError(f"{name}: got {described(source)} of no layer, want {want}")
    elif not own or callable(source):  # a size or another number is no layer
        yield name, source


def _of_mlp(nn, mlp, name):
    if mlp.scan:
        raise ValueError(f"{name}: got an MLP with scan=True, want False")
    default = inspect.signature(nn.MLP.__init__).parameters["final_activation"].default
    *hidden, last = mlp.layers
    for i, layer in enumerate(hidden):
        yield f"{name}.layers[{i}]", layer
        yield f"{name}.activation", mlp.activation
    yield f"{name}.layers[{len(hidden)}]", last
    if hidden and mlp.final_activation is not default:
        yield f"{name}.final_activation", mlp.final_activation


def _paired(listed):
    """Pairs of cells and parameters; an activation becomes one with the product before it."""
    nn, pairs, before = _equinox().nn, [], None
    for name, layer in listed:
        if type(layer) in (nn.Identity, nn.Lambda) or _is_function(layer):
            if type(layer) is nn.Identity:
                continue
            function = layer.fn if type(layer) is nn.Lambda else layer
            if before is None:
                raise ValueError(
                    f"{name}: got the function {name_of(function)!r}, want it right after a Linear"
                )
            cell = project(before.out_features, bias=before.use_bias, activation=name_of(function))
            pairs[-1] = (cell, pairs[-1][1])
            before = None
        else:
            pairs.append(_pair(nn, layer, name))
            before = layer if type(layer) is nn.Linear else None
    if not pairs:
        raise ValueError("module: got no layers, want one or more")
    return pairs


def _is_function(layer):
    return callable(layer) and not isinstance(layer, _equinox().Module)


def _pair(nn, layer, name):
    ours = sys.modules.get("jaxrnn.equinox")
    if ours is not None and isinstance(layer, ours.RNN):
        return layer.cell_and_params()
    makers = {
        nn.LSTMCell: _recurrent,
        nn.GRUCell: _recurrent,
        nn.Linear: _linear,
        nn.LayerNorm: _layer_norm,
        nn.RMSNorm: _rms_norm,
        nn.Embedding: _embedding,
        nn.Dropout: _dropout,
    }
    if type(layer) not in makers:
        known = [*makers, nn.Identity, nn.Lambda, nn.MLP, nn.Sequential]
        names = [f"equinox.nn.{kind.__name__}" for kind in known]
        raise TypeError(f"{name}: got {type(layer).__name__}, want one of {names}")
    return makers[type(layer)](nn, layer, name)


def _recurrent(nn, layer, name):
    make: Callable[..., Cell] = lstm if type(layer) is nn.LSTMCell else gru
    cell = make(layer.hidden_size)
    names = ["weight_ih", "weight_hh", "bias", *(["bias_n"] if make is gru else [])]
    arrays = {name: getattr(layer, name) for name in names}
    if not layer.use_bias:
        height, dtype = arrays["weight_hh"].shape[0], arrays["weight_hh"].dtype
        arrays |= {"bias": jnp.zeros(height, dtype)}
        arrays |= {"bias_n": jnp.zeros(layer.hidden_size, dtype)} if make is gru else {}
    return cell, to_params(cell, LAYOUTS[make], arrays, name)


def _linear(nn, layer, name):
    if "scalar" in (layer.in_features, layer.out_features):
        raise ValueError(f"{name}: got a Linear of 'scalar', want 1: an axis of one feature")
    cell = project(layer.out_features, bias=layer.use_bias)
    arrays = {"weight": layer.weight} | ({"bias": layer.bias} if layer.use_bias else {})
    names = {"w": "weight"} | ({"b": "bias"} if layer.use_bias else {})
    return cell, to_params(cell, _renamed(**names), arrays, name)


def _layer_norm(nn, layer, name):
    cell, shape = layer_norm(epsilon=layer.eps), _features(layer, name)
    weight = jnp.ones(shape) if layer.weight is None else layer.weight
    bias = jnp.zeros(shape, weight.dtype) if layer.bias is None else layer.bias
    layout = _renamed(scale="weight", bias="bias")
    return cell, to_params(cell, layout, {"weight": weight, "bias": bias}, name)


def _rms_norm(nn, layer, name):
    if layer.bias is not None:
        raise ValueError(f"{name}: got an RMSNorm with a bias, want use_bias=False")
    cell, shape = rms_norm(epsilon=layer.eps), _features(layer, name)
    weight = jnp.ones(shape) if layer.weight is None else layer.weight
    return cell, to_params(cell, _renamed(scale="weight"), {"weight": weight}, name)


def _features(layer, name):
    if len(layer.shape) != 1:
        raise ValueError(f"{name}: got the shape {layer.shape}, want one axis, of the features")
    return layer.shape


def _embedding(nn, layer, name):
    cell = embedding(layer.num_embeddings, layer.embedding_size)
    want, came = (layer.num_embeddings, layer.embedding_size), layer.weight.shape
    if came != want:
        raise ValueError(f"{name}['weight']: got shape {came}, want {want}: {cell}")
    return cell, {"table": jnp.asarray(layer.weight)}


def _dropout(nn, layer, name):
    return dropout(float(layer.p)), {}
