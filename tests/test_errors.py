"""What a caller can get wrong: each error names the argument, what came and what is wanted."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

KEY = jax.random.key(0)
XS = jnp.ones((5, 2, 3))  # [T, B, I]
LENGTHS = jnp.array([5, 1])
FLAGS = jnp.ones((5, 2), bool)
LSTM, GRU = jaxrnn.lstm(4), jaxrnn.gru(4)
LIFTED = jaxrnn.gru(4, reset_after=False)
SMOOTH = cases.smooth(4)
IN_TUPLE = jaxrnn.cell(None, lambda params, batch: (), lambda params, state, x: (state, x))
ATTENTION = jaxrnn.attention(4, heads=2, context=4)
PROJECT, NORM = jaxrnn.project(4), jaxrnn.layer_norm()
STACK, BOTH = jaxrnn.stack(LSTM, GRU), jaxrnn.bidirectional(LSTM)
ATTENTIVE = jaxrnn.attentive(GRU, 3)
CELLS = (LSTM, GRU, LIFTED, SMOOTH, ATTENTION, PROJECT, NORM, STACK, BOTH, ATTENTIVE)
PARAMS = {cell: cell.init(KEY, 3) for cell in CELLS}
STATE = LSTM.initial_state(PARAMS[LSTM], (2,))


def run(cell=LSTM, params=None, xs=XS, state=None, **options):
    params = PARAMS.get(cell) if params is None else params
    return lambda: jaxrnn.unroll(cell, params, xs, state, **options)


def params(cell=LSTM, **replaced):
    """Parameters with some replaced; None takes one out."""
    replaced = PARAMS[cell] | replaced
    return run(cell, {name: array for name, array in replaced.items() if array is not None})


class Foreign:
    """An array as other libraries have them, whose types are their own."""

    def __init__(self, array):
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, "theirs"


def lifted(step):
    """A run of a cell that is lifted from a step, with a state [..., 3]."""
    zeros = lambda params, batch: jnp.zeros((*batch, 3))
    return run(jaxrnn.cell(lambda key, in_size: {}, zeros, step), {})


def gated(update, gates=2, **options):
    update.__name__ = "my_update"
    return lambda: jaxrnn.gated(update, gates=gates, **options)


def make(constructor, *args, **options):
    return lambda: constructor(*args, **options)


V, T = ValueError, TypeError
BAD = {  # the call, the error, and what its text has: the argument, what came, what is wanted
    # unroll
    "cell": (run(jaxrnn.lstm, {}), T, "cell: ", "got lstm", "a Cell, as jaxrnn.lstm(128)"),
    "xs rank": (run(xs=XS[0, 0]), V, "xs: ", "shape (3,)", "[T, ...batch, I]"),
    "xs list": (run(xs=[[1.0]]), T, "xs: ", "got list", "an array [T, ...batch, I]"),
    "xs int": (run(xs=XS.astype(int)), T, "xs: ", "got int32", "a floating type"),
    "xs features": (run(xs=XS[..., :2]), V, "xs: ", "I = 2", "want 3"),
    "lengths beyond T": (run(lengths=LENGTHS + 1), V, "lengths: ", "2 to 6", "0 and T = 5"),
    "lengths negative": (run(lengths=LENGTHS - 2), V, "lengths: ", "-1 to 3", "0 and T = 5"),
    "lengths float": (run(lengths=LENGTHS / 2), T, "lengths: ", "got float32", "an integer type"),
    "lengths shape": (run(lengths=LENGTHS[:1]), V, "lengths: ", "shape (1,)", "[...batch] = (2,)"),
    "lengths text": (run(lengths="ab"), T, "lengths: ", "got 'ab'", "an array of ints"),
    "mask shape": (run(mask=FLAGS.T), V, "mask: ", "(2, 5)", "[T, ...batch] = (5, 2)"),
    "mask float": (run(mask=FLAGS.astype(float)), T, "mask: ", "got float32", "mask.astype(bool)"),
    "lengths of batch-major xs": (
        run(xs=XS.swapaxes(0, 1), lengths=LENGTHS),
        V,
        "lengths: ",
        "shape (2,)",
        "want [...batch] = (5,)",
        "swapped here, or in xs?",
    ),
    "mask of batch-major xs": (
        run(xs=XS.swapaxes(0, 1), mask=FLAGS),
        V,
        "mask: ",
        "(5, 2)",
        "= (2, 5)",
        "swapped",
    ),
    "state of batch-major xs": (
        run(xs=XS.swapaxes(0, 1), state=STATE),
        V,
        "state: ",
        "[2, 4]",
        "[5, 4]",
        "swapped",
    ),
    "mask list": (run(mask=[True] * 5), T, "mask: ", "got list", "a bool array (5, 2)"),
    "starts shape": (run(starts=FLAGS[:, 0]), V, "starts: ", "(5,)", "[T, ...batch] = (5, 2)"),
    "starts int": (run(starts=FLAGS.astype(int)), T, "starts: ", "got int32", "want bool"),
    "float dones": (
        make(jaxrnn.from_dones, FLAGS.astype(float), True),
        T,
        "dones: ",
        "got float32",
        "want bool: dones.astype(bool)",
    ),
    "starts bool": (run(starts=True), T, "starts: ", "got bool", "a bool array (5, 2)"),
    "segment_ids bool": (
        run(segment_ids=FLAGS),
        T,
        "segment_ids: ",
        "got bool",
        "an integer type",
    ),
    "segment_ids shape": (
        run(segment_ids=LENGTHS),
        V,
        "segment_ids: ",
        "shape (2,)",
        "[T, ...batch] = (5, 2)",
    ),
    "segment_ids of batch-major xs": (
        run(segment_ids=FLAGS.T.astype(int)),
        V,
        "segment_ids: ",
        "(2, 5)",
        "swapped",
    ),
    "segment_ids and starts": (
        run(segment_ids=FLAGS.astype(int), starts=FLAGS),
        V,
        "starts: ",
        "got it and segment_ids",
        "want one",
    ),
    "segment_ids and a state": (
        run(segment_ids=FLAGS.astype(int), state=STATE),
        V,
        "state: ",
        "got it and segment_ids",
        "begins with the initial state",
    ),
    "deterministic": (run(deterministic=1), T, "deterministic: ", "got 1", "True or False"),
    "dropout without a key": (
        run(jaxrnn.stack(jaxrnn.dropout(0.5), LSTM), {"1": PARAMS[LSTM]}, deterministic=False),
        V,
        "key: ",
        "got None and deterministic=False",
        "want a key: the cell draws",
    ),
    "reverse": (run(reverse=1), T, "reverse: ", "got 1", "True or False"),
    "key int": (run(key=0), T, "key: ", "got 0", "one key, as jax.random.key(0)"),
    "keys": (run(key=jax.random.split(KEY)), T, "key: ", "[2]", "one key, as jax.random.key(0)"),
    "implementation": (
        run(implementation="fast"),
        V,
        "implementation: ",
        "'fast'",
        "('reference', 'xla'",
    ),
    "implementation elsewhere": (
        run(ATTENTION, xs=XS[:4], implementation="gpu"),
        V,
        "implementation='gpu'",
        "on cpu",
        "needs an NVIDIA GPU",
    ),
    "implementation of another operation": (
        run(ATTENTION, xs=XS[:4], implementation="tpu"),
        V,
        "implementation: ",
        "'tpu'",
        "only ('reference', 'cpu', 'gpu', 'xla')",
    ),
    "implementation on another platform": (
        run(implementation="gpu"),
        V,
        "implementation='gpu'",
        "on cpu",
        "for NVIDIA GPUs",
    ),
    "implementation of a cell from its step": (
        run(SMOOTH, implementation="xla"),
        V,
        "implementation: ",
        "'xla'",
        "only 'reference'",
    ),
    "context": (run(ATTENTION), V, "xs: ", "T = 5", "context=4 at most"),
    # states
    "state structure": (run(state=STATE[0]), V, "state: ", "got float32[2, 4]", "want ('float32"),
    "state shape": (run(state=(STATE[0], STATE[1][:1])), V, "state: ", "[1, 4]", "want ('float32"),
    "state of another cell": (
        run(GRU, state=STATE),
        V,
        "state: ",
        "got ('float32[2, 4]', ",
        "want ('float32[2, 4]',)",
    ),
    "state int": (
        run(state=jax.tree.map(jnp.int32, STATE)),
        T,
        "state: ",
        "got ('int32",
        "want ('float32",
    ),
    "state of one layer": (
        run(STACK, state=STATE),
        V,
        "state: ",
        "got ('float32",
        "want (('float32",
    ),
    # arrays of another library
    "foreign xs": (run(xs=Foreign(XS)), T, "xs: ", "Foreign", "NumPy: jnp.asarray(xs)"),
    "foreign mask": (run(mask=Foreign(FLAGS)), T, "mask: ", "Foreign", "jnp.asarray(mask)"),
    "foreign params": (
        params(w=Foreign(XS)),
        T,
        "params['w']: ",
        "Foreign",
        "jnp.asarray(params['w'])",
    ),
    # parameters
    "params missing": (params(r=None), V, "params: ", "['b', 'w']", "['b', 'r', 'w']"),
    "params extra": (params(z=XS), V, "params: ", "['b', 'r', 'w', 'z']", "['b', 'r', 'w']"),
    "params shape": (params(r=XS), V, "params['r']: ", "shape (5, 2, 3)", "want (4, 4, 4)"),
    "params rank": (params(w=XS[0]), V, "params['w']: ", "shape (2, 3)", "want (3, 4, 4)"),
    "params int": (
        params(b=jnp.zeros((4, 4), int)),
        T,
        "params['b']: ",
        "got int32",
        "a floating type",
    ),
    "params number": (params(ATTENTION, out=0.0), T, "params['out']: ", "got float", "an array"),
    "params list": (run(params=[XS]), V, "params: ", "got list", "a dict of ['b', 'r', 'w']"),
    "params in the variables of a module": (
        run(params={"params": {"rnn": {"cell": PARAMS[LSTM]}}}),
        V,
        "params: ",
        "got ['params']",
        "they are params['params']['rnn']['cell']",
    ),
    "params of another cell": (
        run(GRU, PARAMS[LSTM]),
        V,
        "params: ",
        "['b', 'r', 'w']",
        "['b', 'r', 'rb', 'w']",
    ),
    "params of one layer": (
        run(STACK, PARAMS[LSTM]),
        V,
        "params: ",
        "['b', 'r', 'w']",
        "a dict of ['0', '1']",
    ),
    "params of a layer": (
        run(STACK, {**PARAMS[STACK], "1": PARAMS[STACK]["1"] | {"rb": XS}}),
        V,
        "params['rb']: ",
        "(5, 2, 3)",
        "want (4,)",
        "in layer 1 of a stack, gru(hidden=4)",
    ),
    "init key": (make(LSTM.init, 0, 3), T, "key: ", "got 0", "one key, as jax.random.key(0)"),
    "init size": (make(LSTM.init, KEY, 3.0), T, "in_size: ", "got 3.0", "an int"),
    "init no size": (make(LSTM.init, KEY, 0), V, "in_size: ", "got 0", "1 or more"),
    "init of inputs": (
        make(LSTM.init, KEY, XS),
        T,
        "in_size: ",
        "got float32[5, 2, 3]",
        "int",
        "xs.shape[-1]",
    ),
    "init of a shape": (make(LSTM.init, KEY, (5, 3)), T, "in_size: ", "(5, 3)", "xs.shape[-1]"),
    "init without a size": (make(LSTM.init, KEY), T, "init: ", "missing", "init(key, in_size)"),
    # a step
    "step without a state": (
        make(LSTM.step, PARAMS[LSTM], XS[0]),
        T,
        "step: ",
        "missing",
        "'x'",
        "step(params, state, x, key=None)",
    ),
    "step with a state for an input": (
        make(LSTM.step, PARAMS[LSTM], XS[0], STATE),
        T,
        "x: ",
        "got tuple",
        "an array [...batch, I]: step(params, state, x)",
    ),
    "step that gives y": (
        lifted(lambda p, s, x: x),
        T,
        "step: ",
        "gave float32[2, 3]",
        "want (state, y)",
    ),
    "step that gives three": (
        lifted(lambda p, s, x: (s, x, x)),
        T,
        "step: ",
        "gave tuple of 3",
        "want (state, y)",
    ),
    "step that gives y first": (
        lifted(lambda p, s, x: (x[..., :1], s)),
        V,
        "step: ",
        "gave (state, y) with the state float32[2, 1]",
        "want float32[2, 3]",
    ),
    "step that packs its state": (
        lifted(lambda p, s, x: ((s,), x)),
        V,
        "step: ",
        "('float32[2, 3]',)",
        "initial_state",
    ),
    "step that rounds its state": (
        lifted(lambda p, s, x: (s.astype("bfloat16"), x)),
        T,
        "step: ",
        "bfloat16[2, 3]",
        "want float32[2, 3]",
    ),
    # the wrong thing in its place
    "params and xs swapped": (
        run(params=XS, xs=PARAMS[LSTM]),
        V,
        "xs['",
        "want (4,) as others",
        "are params and xs swapped?",
    ),
    "params before the cell": (
        make(jaxrnn.unroll, PARAMS[LSTM], LSTM, XS),
        T,
        "cell: ",
        "got dict",
        "a Cell",
    ),
    "lengths for a state": (
        make(jaxrnn.unroll, LSTM, PARAMS[LSTM], XS, LENGTHS),
        V,
        "state: ",
        "got int32[2]",
        "want ('float32",
    ),
    "arrays for an array": (run(xs=(XS, XS)), T, "xs: ", "got tuple", "an array [T, ...batch, I]"),
    "a dict for an array": (
        run(xs={"x": XS}),
        T,
        "xs: ",
        "got a dict of ['x']",
        "want an array: the cell reads one input",
    ),
    "a dict for an array in a step": (
        make(PROJECT.step, PARAMS[PROJECT], (), {"x": XS[0]}),
        T,
        "x: ",
        "got a dict of ['x']",
        "want an array",
    ),
    "tokens for features": (run(xs=LENGTHS), T, "xs: ", "got int32", "a floating type"),
    "features for tokens": (
        run(jaxrnn.embedding(9, 4), {"table": jnp.ones((9, 4))}),
        T,
        "xs: ",
        "got float32",
        "an integer type: tokens",
    ),
    "xs of objects": (
        run(xs=np.array(XS).astype(object)),
        T,
        "xs: ",
        "got object",
        "a floating type",
    ),
    "xs of text": (run(xs=np.array([["a"]])), T, "xs: ", "got <U1", "a floating type"),
    "xs of complex numbers": (
        run(xs=XS.astype("complex64")),
        T,
        "xs: ",
        "got complex64",
        "a floating type",
    ),
    "lengths of objects": (
        run(lengths=np.array([5, 1], object)),
        T,
        "lengths: ",
        "got object[2]",
        "an array of ints",
    ),
    "lengths ragged": (run(lengths=[[5], [1, 2]]), T, "lengths: ", "got [[5], [1", "of ints"),
    "lengths of bools": (run(lengths=FLAGS[0]), T, "lengths: ", "got bool", "an integer type"),
    "a number for lengths": (run(lengths=5), V, "lengths: ", "shape ()", "[...batch] = (2,)"),
    "mask with features": (
        run(mask=FLAGS[..., None]),
        V,
        "mask: ",
        "(5, 2, 1)",
        "[T, ...batch] = (5, 2)",
    ),
    "starts of rows": (run(starts=FLAGS[0]), V, "starts: ", "(2,)", "[T, ...batch] = (5, 2)"),
    "segment_ids list": (
        run(segment_ids=[[1, 1]] * 5),
        T,
        "segment_ids: ",
        "got list",
        "an int array (5, 2)",
    ),
    "state list": (run(state=[*STATE]), V, "state: ", "got ['float32", "want ('float32"),
    "state dict": (
        run(state=dict(zip("hc", STATE))),
        V,
        "state: ",
        "got {'c': 'float32",
        "want ('float32",
    ),
    "state text": (run(state="zeros"), T, "state: ", "got 'zeros'", "want ('float32[2, 4]'"),
    "state of objects": (
        run(state=tuple(np.array(s).astype(object) for s in STATE)),
        T,
        "state: ",
        "got object[2, 4]",
        "want ('float32[2, 4]'",
    ),
    "foreign state": (
        run(state=tuple(map(Foreign, STATE))),
        T,
        "state: ",
        "Foreign",
        "want ('float32[2, 4]'",
    ),
    "key of ints": (run(key=np.array([0, 1])), T, "key: ", "got int64[2]", "jax.random.key(0)"),
    "params of layers in a list": (
        run(STACK, [*PARAMS[STACK].values()]),
        V,
        "params: ",
        "got list",
        "a dict of ['0', '1']",
    ),
    "no params": (
        run(GRU, params=()),
        V,
        "params: ",
        "got tuple",
        "a dict of ['b', 'r', 'rb', 'w']",
    ),
    "params of lists": (params(w=[[0.0]]), T, "params['w']: ", "got list", "an array"),
    "reverse inside of jit": (
        make(jax.jit(jaxrnn.unroll), LSTM, PARAMS[LSTM], XS, reverse=True),
        T,
        "reverse: ",
        "got bool[]",
        "make it static",
        "static_argnames='reverse'",
    ),
    "cells in a list": (
        make(jax.vmap(lambda cell, x: run(cell, PARAMS[LSTM], x)()), [LSTM] * 5, XS),
        T,
        "cell: ",
        "got list",
        "a Cell",
    ),
    "a cell's own unroll with a mask": (
        make(LSTM.unroll, PARAMS[LSTM], None, XS, FLAGS),
        T,
        "options: ",
        "got bool[5, 2]",
        "a jaxrnn.Options, which jaxrnn.unroll(cell, params, xs, ...)",
    ),
    "a cell's own unroll without options": (
        make(LSTM.unroll, PARAMS[LSTM], None, XS),
        T,
        "unroll: ",
        "missing",
        "unroll(params, state, xs, options",
    ),
    "batch_shape int": (
        make(LSTM.initial_state, PARAMS[LSTM], 2),
        T,
        "batch_shape: ",
        "got 2",
        "a tuple of sizes",
    ),
    "batch_shape array": (
        make(STACK.initial_state, PARAMS[STACK], XS),
        T,
        "batch_shape: ",
        "got float32[5, 2, 3]",
        "a tuple of sizes, as xs.shape[1:-1]",
    ),
    "batch_shape float": (
        make(LSTM.initial_state, PARAMS[LSTM], (2.0,)),
        T,
        "batch_shape: ",
        "got (2.0,)",
        "a tuple of sizes",
    ),
    "batch_shape before params": (
        make(LIFTED.initial_state, (2,), PARAMS[LIFTED]),
        T,
        "batch_shape: ",
        "got dict",
        "initial_state(params, batch_shape)",
    ),
    "init's arguments swapped": (make(GRU.init, 3, KEY), T, "key: ", "got 3", "jax.random.key(0)"),
    "init key of other cells": (make(PROJECT.init, 0, 3), T, "key: ", "got 0", "one key"),
    "init keys": (make(GRU.init, jax.random.split(KEY), 3), T, "key: ", "[2]", "one key"),
    "init size of text": (make(NORM.init, KEY, "3"), T, "in_size: ", "got '3'", "an int"),
    "step key": (
        make(jaxrnn.dropout(0.5).step, {}, jnp.zeros(2, int), XS[0], 3),
        T,
        "key: ",
        "got 3",
        "one key",
    ),
    "step of a sequence": (
        make(LSTM.step, PARAMS[LSTM], STATE, XS),
        V,
        "state: ",
        "[2, 4]",
        "want ('float32[5, 2, 4]'",
    ),
    # the words of other libraries
    "num_layers": (
        make(jaxrnn.lstm, 4, num_layers=2),
        T,
        "lstm()",
        "'num_layers'",
        "want jaxrnn.stack(cell, ...)",
    ),
    "bidirectional=": (
        make(jaxrnn.gru, 4, bidirectional=True),
        T,
        "gru()",
        "'bidirectional'",
        "want jaxrnn.bidirectional(cell)",
    ),
    "batch_first": (
        make(jaxrnn.gru, 4, batch_first=True),
        T,
        "'batch_first'",
        "want xs [T, ...batch, I] in jaxrnn.unroll",
    ),
    "return_sequences": (
        make(jaxrnn.lstm, 4, return_sequences=True),
        T,
        "'return_sequences'",
        "want jaxrnn.unroll, which gives",
    ),
    "two sizes": (make(jaxrnn.lstm, 3, 4), T, "lstm(): ", "too many positional", "lstm(hidden, *"),
    "hidden text": (make(jaxrnn.lstm, "4"), T, "hidden: ", "got '4'", "an int"),
    "a flag of text": (
        make(jaxrnn.gru, 4, reset_after="no"),
        T,
        "reset_after: ",
        "got 'no'",
        "True or False",
    ),
    "a number of text": (
        make(jaxrnn.lstm, 4, forget_bias="one"),
        T,
        "forget_bias: ",
        "got 'one'",
        "a number",
    ),
    "a cell after a number": (
        make(jaxrnn.zoneout, 0.5, LSTM),
        T,
        "zoneout: ",
        "got 0.5",
        "a Cell",
    ),
    "a size for a cell": (make(jaxrnn.bidirectional, 4), T, "bidirectional: ", "got 4", "a Cell"),
    "an update by name": (
        make(jaxrnn.gated, "lstm", gates=4),
        T,
        "update: ",
        "got 'lstm'",
        "a function",
    ),
    "quantize without params": (
        make(jaxrnn.quantize, LSTM, None),
        T,
        "params: ",
        "got None",
        "a dict of arrays",
    ),
    "unpack by floats": (
        make(jaxrnn.unpack, XS, np.ones((5, 2))),
        T,
        "segment_ids: ",
        "got float64",
        "an integer type",
    ),
    # constructors
    "misspelt": (make(jaxrnn.lstm, hiden=3), T, "lstm(", "'hiden'", "want hidden="),
    "hidden_size": (
        make(jaxrnn.lstm, hidden_size=3),
        T,
        "lstm(",
        "'hidden_size'",
        "want hidden=",
    ),
    "units": (make(jaxrnn.gru, units=3), T, "gru(", "'units'", "want hidden=", "it takes gru("),
    "no hidden": (make(jaxrnn.gru), T, "gru(", "missing", "'hidden'"),
    "misspelt option": (
        make(jaxrnn.lstm, 3, forget_bais=0),
        T,
        "lstm()",
        "'forget_bais'",
        "forget_bias=1.0",
    ),
    "hidden float": (make(jaxrnn.gru, 3.0), T, "hidden: ", "got 3.0", "an int"),
    "hidden 0": (make(jaxrnn.elman, 0), V, "hidden: ", "got 0", "1 or more"),
    "heads": (make(jaxrnn.lstm, 6, heads=4), V, "heads: ", "got 4", "a divisor of hidden=6"),
    "projection": (
        make(jaxrnn.lstm, 6, projection=2, heads=2),
        V,
        "projection=2: ",
        "got heads or residuals",
        "want neither",
    ),
    "attention heads": (make(jaxrnn.attention, 6), V, "heads: ", "got 4", "a divisor of hidden=6"),
    "window": (make(jaxrnn.attention, 4, window=0), V, "window: ", "got 0", "1 or more"),
    "residuals": (
        make(jaxrnn.gru, 4, residuals="all"),
        V,
        "residuals: ",
        "'all'",
        "('gates', 'states', 'chunks')",
    ),
    "activation": (
        make(jaxrnn.elman, 4, activation="tahn"),
        V,
        "activation: ",
        "'tahn'",
        "in jax.nn",
    ),
    "rate": (make(jaxrnn.dropout, 1.5), V, "rate: ", "got 1.5", "from 0 to 1"),
    "rate of text": (
        make(jaxrnn.dropout, "0.5"),
        T,
        "rate: ",
        "got '0.5'",
        "a number",
    ),
    "decay": (make(jaxrnn.lif, 4, decay=2), V, "decay: ", "got 2", "a number from 0 to 1"),
    "per": (make(jaxrnn.dropout, 0.5, per="row"), V, "per: ", "'row'", "'step' or 'sequence'"),
    "merge": (
        make(jaxrnn.bidirectional, LSTM, merge="cat"),
        V,
        "merge: ",
        "'cat'",
        "'concat', 'sum'",
    ),
    "backward": (
        make(jaxrnn.bidirectional, LSTM, "gru"),
        T,
        "bidirectional: ",
        "got 'gru'",
        "a Cell",
    ),
    "bidirectional step": (
        make(BOTH.step, PARAMS[BOTH], None, XS[0]),
        V,
        "bidirectional has no step",
        "needs the whole sequence",
        "use unroll",
    ),
    "residual": (
        run(jaxrnn.residual(LSTM), PARAMS[LSTM]),
        V,
        "residual: ",
        "input of 3",
        "output of 4",
    ),
    "highway": (
        run(jaxrnn.highway(LSTM), {"cell": PARAMS[LSTM], "w": jnp.ones((3, 3)), "b": XS[0, 0]}),
        V,
        "highway: ",
        "input of 3",
        "output of 4",
    ),
    "highway's params": (
        run(jaxrnn.highway(LSTM), PARAMS[LSTM]),
        V,
        "params: ",
        "['b', 'r', 'w']",
        "['b', 'cell', 'w']",
    ),
    "merge of parallel": (
        make(jaxrnn.parallel, LSTM, merge="max"),
        V,
        "merge: ",
        "'max'",
        "'mean', 'product'",
    ),
    "parallel of nothing": (jaxrnn.parallel, V, "parallel: ", "got no cells", "one or more"),
    "params in parallel": (
        run(jaxrnn.parallel(GRU), {"0": PARAMS[GRU] | {"rb": XS}}),
        V,
        "params['rb']: ",
        "in layer 0 of parallel, gru(hidden=4)",
    ),
    "two outputs within a stack": (
        make(jaxrnn.stack(jaxrnn.bidirectional(LSTM, merge=None), GRU).init, KEY, 3),
        V,
        "bidirectional(forward=lstm(hidden=4), merge=None): gives 2 outputs",
        "want one array",
    ),
    "weight_dropout": (
        run(jaxrnn.weight_dropout(LSTM, 0.5, names=("w", "u")), PARAMS[LSTM]),
        V,
        "names: ",
        "got ('w', 'u')",
        "some of ['b', 'r', 'w']",
    ),
    "weight_dropout of a tuple": (
        run(jaxrnn.weight_dropout(IN_TUPLE, 0.5), (XS[0, 0],)),
        V,
        "names: ",
        "some of []",
    ),
    "weight_dropout of a tuple and a dict": (
        run(jaxrnn.weight_dropout(IN_TUPLE, 0.5), (XS[0, 0], {"w": XS[0, 0]})),
        V,
        "names: ",
        "some of ['w']",
    ),
    "weight_dropout's rate": (
        make(jaxrnn.weight_dropout, LSTM, 2),
        V,
        "rate: ",
        "got 2",
        "from 0 to 1",
    ),
    "zoneout's rates": (
        run(jaxrnn.zoneout(GRU, (0.5, 0.5)), PARAMS[GRU]),
        V,
        "rate: ",
        "got 2",
        "each of 1",
    ),
    "zoneout's rate": (make(jaxrnn.zoneout, GRU, (0.5, -1)), V, "rate: ", "got -1", "from 0 to 1"),
    "zoneout of another output": (
        run(jaxrnn.zoneout(STACK, 0.5), PARAMS[STACK]),
        V,
        "zoneout: ",
        "got stack(",
        "its state's first array",
    ),
    "recurrent_dropout": (
        make(jaxrnn.recurrent_dropout, jaxrnn.elman(4), 0.5),
        T,
        "recurrent_dropout: ",
        "got elman(hidden=4)",
        "takes drop",
    ),
    "variational_dropout": (
        make(jaxrnn.variational_dropout, LIFTED, 0.5),
        T,
        "variational_dropout: ",
        "reset_after=False",
        "made by jaxrnn.gated",
    ),
    "scheme": (
        make(jaxrnn.initialized, LSTM, "jax"),
        V,
        "scheme: ",
        "'jax'",
        "('torch', 'keras')",
    ),
    "initialized by no name": (
        make(jaxrnn.initialized(STACK, u="ones").init, KEY, 3),
        V,
        "['u']",
        "'rb', 'w']",
        "stack(",
    ),
    "initializer's name": (
        make(jaxrnn.initialized, LSTM, b="zeroes"),
        V,
        "b: ",
        "'zeroes'",
        "in jax.nn.initializers",
    ),
    "initializer's arguments": (
        make(jaxrnn.initialized, LSTM, b="constant"),
        V,
        "b: ",
        "'constant'",
        "needs no arguments",
    ),
    "initializer": (make(jaxrnn.initialized, LSTM, b=0), T, "b: ", "got 0", "an initializer"),
    "initializers of gates": (
        make(jaxrnn.initialized(LSTM, b=("ones",) * 3).init, KEY, 3),
        V,
        "b: ",
        "got 3",
        "each of 4 gates",
    ),
    "chrono": (make(jaxrnn.chrono, 2), V, "longest: ", "got 2", "more than 2"),
    "chrono's gate": (
        make(jaxrnn.initialized(GRU, b=jaxrnn.chrono(9, forget=3)).init, KEY, 3),
        V,
        "forget: ",
        "got 3",
        "one of 3 gates",
    ),
    "learned_state's params": (
        run(jaxrnn.learned_state(LSTM), PARAMS[LSTM]),
        V,
        "params: ",
        "['b', 'r', 'w']",
        "['cell', 'state']",
    ),
    "learned_state's state": (
        run(jaxrnn.learned_state(GRU), {"cell": PARAMS[GRU], "state": {"0": XS}}),
        V,
        "params['state']: ",
        "(5, 2, 3)",
        "want (4,)",
    ),
    "score": (make(jaxrnn.attentive, GRU, 4, score="cosine"), V, "score: ", "'cosine'", "'dot'"),
    "dot with another size": (
        make(jaxrnn.attentive(GRU, 3, score="dot").init, KEY, 3),
        V,
        "memory: ",
        "got 3",
        "want 4",
    ),
    "memory's features": (
        make(jaxrnn.remember, jaxrnn.attentive(GRU, 6).init(KEY, 3), XS),
        V,
        "memory: ",
        "I = 3",
        "want 6",
    ),
    "memory's batch": (
        run(ATTENTIVE, jaxrnn.remember(PARAMS[ATTENTIVE], XS[:, :1])),
        V,
        "memory: ",
        "batch (1,)",
        "want (2,)",
    ),
    "memory's mask": (
        make(jaxrnn.remember, PARAMS[ATTENTIVE], XS, mask=FLAGS.T),
        V,
        "mask: ",
        "(2, 5)",
        "[S, ...batch] = (5, 2)",
    ),
    "stack of nothing": (jaxrnn.stack, V, "a stack: ", "got no cells", "one or more"),
    "stack of a list": (make(jaxrnn.stack, [LSTM]), T, "a stack: ", "got [lstm(", "a Cell"),
    "stack of functions": (make(jaxrnn.stack, jaxrnn.gru), T, "a stack: ", "got gru", "a Cell"),
    "gates": (gated(lambda state, x, r: x, gates=0), V, "gates: ", "got 0", "1 or more"),
    "gates' bias": (
        gated(lambda state, x, r: x, bias=(1.0,)),
        V,
        "bias: ",
        "1 numbers",
        "each of 2 gates",
    ),
    "gates' names": (
        gated(lambda state, x, r: x, gates=("f", "f")),
        V,
        "gates: ",
        "('f', 'f')",
        "different names",
    ),
    "states' names": (
        gated(lambda state, x, r: x, states=("h", "")),
        V,
        "states: ",
        "('h', '')",
        "or how many",
    ),
    "bias of named gates": (
        gated(lambda state, x, r: x, gates=("f", "n"), bias=(1.0,)),
        V,
        "bias: ",
        "2 gates: f, n",
    ),
    "recurrent gates": (
        gated(lambda state, x, r: x, gates=("f", "n"), recurrent=("f", "g")),
        V,
        "recurrent: ",
        "('f', 'g')",
        "different gates of f, n",
    ),
    "update's named results": (
        gated(lambda state, x, r: x, states=("c",)),
        T,
        "my_update: ",
        "1 arrays",
        ": c",
    ),
    "update over H": (
        gated(lambda state, x, r: (jnp.cumsum(x[0]),)),
        T,
        "my_update: ",
        "cumsum",
        "elementwise",
    ),
    "update that sums": (
        gated(lambda state, x, r: (x[0] / x[0].sum(),)),
        T,
        "my_update: ",
        "sum",
        "elementwise",
    ),
    "activation over H": (
        make(jaxrnn.elman, 4, activation="softmax"),
        T,
        "elman_update: ",
        "max",
        "elementwise",
    ),
    "params of bidirectional": (
        run(BOTH, PARAMS[LSTM]),
        V,
        "params: ",
        "['b', 'r', 'w']",
        "['backward', 'forward']",
    ),
    "step's state": (
        make(LSTM.step, PARAMS[LSTM], (STATE[0], STATE[1][:1]), XS[0]),
        V,
        "state: ",
        "[1, 4]",
        "want ('float32[2, 4]'",
    ),
    "step's state of a lifted cell": (
        make(LIFTED.step, PARAMS[LIFTED], STATE, XS[0]),
        V,
        "state: ",
        "got ('float32[2, 4]', 'float32",
        "want ('float32[2, 4]',)",
    ),
    "step's state of dropout": (
        make(jaxrnn.dropout(0.5).step, {}, jnp.zeros(1, int), XS[0]),
        V,
        "state: ",
        "got int32[1]",
        "want int32[2]",
    ),
    "project's params": (
        run(PROJECT, {"w": jnp.ones((3, 4))}),
        V,
        "params: ",
        "['w']",
        "['b', 'w']",
    ),
    "project's features": (run(PROJECT, xs=XS[..., :2]), V, "xs: ", "I = 2", "want 3"),
    "project's weight": (
        run(PROJECT, PARAMS[PROJECT] | {"b": XS[0]}),
        V,
        "params['b']: ",
        "(2, 3)",
        "want (4,)",
    ),
    "layer_norm's params": (
        run(NORM, {"scale": XS[0, 0], "bias": XS[0]}),
        V,
        "params['bias']: ",
        "(2, 3)",
        "want (3,)",
    ),
    "platform": (
        make(jaxrnn.explain, LSTM, PARAMS[LSTM], XS, platform="npu"),
        V,
        "platform: ",
        "'npu'",
        "'gpu', 'cpu', 'tpu'",
    ),
    "update's results": (
        gated(lambda state, x, r: x),
        T,
        "my_update: ",
        "[(3,), (3,)]",
        "a tuple of 1 arrays",
    ),
    "update's result": (
        gated(lambda state, x, r: x[0]),
        T,
        "my_update: ",
        "gave ",
        "a tuple of 1 arrays",
    ),
    "update's weights": (
        gated(lambda state, x, r, u: x),
        T,
        "my_update: ",
        "'u'",
        "(state, x, r)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_is_wrong(name):
    call, kind, *texts = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert caught.type is kind and all(text in said for text in texts), said


def test_before_anything_runs():
    """At trace time: inside a jit, and of shapes alone."""
    with pytest.raises(ValueError, match="xs: got I = 2 features, want 3"):
        jax.jit(lambda xs: run(xs=xs)())(XS[..., :2])
    known = LENGTHS + 1
    with pytest.raises(ValueError, match="lengths: got values from 2 to 6"):
        jax.jit(lambda xs: run(xs=xs, lengths=known)())(XS)
    with pytest.raises(ValueError, match="xs: got I = 2 features, want 3"):
        jaxrnn.explain(LSTM, PARAMS[LSTM], jax.ShapeDtypeStruct((5, 2, 2), XS.dtype))


def test_lengths_that_are_not_known():
    """Inside a jit, lengths below 0 are 0 and lengths beyond T are T, as documented."""
    many = jax.jit(lambda lengths: run(lengths=lengths)())(jnp.array([7, -1]))
    known = run(lengths=jnp.array([5, 0]))()
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), many, known))


def test_deterministic():
    """It says which is meant: with a key, without one, of cells that draw and that do not."""
    noisy = lambda **options: run(jaxrnn.dropout(0.5), {}, **options)()[1]
    assert (noisy(key=KEY, deterministic=True) == XS).all()
    assert (noisy(key=KEY, deterministic=False) == noisy(key=KEY)).all()
    assert (noisy(deterministic=True) == XS).all() and (noisy(key=KEY) != XS).any()
    assert (run(deterministic=False)()[1] == run()()[1]).all()


def test_a_state_of_numbers():
    """What Python's numbers begin as has no type to keep."""
    count = jaxrnn.cell(lambda key, n: {}, lambda p, b: 0, lambda p, s, x: (s + 0.5, x + s))
    assert jaxrnn.unroll(count, {}, XS)[0] == 2.5


def test_inputs_wider_than_the_parameters(x64):
    with pytest.raises(TypeError, match="xs: got float64, want float32 or less"):
        run(xs=XS.astype("float64"))()
