"""The two layers of RWKV, version 4: time mixing and channel mixing."""

import jax.numpy as jnp
from jax.nn import relu

from jaxrnn._src.builders.stateless import project
from jaxrnn._src.cells import wkv
from jaxrnn._src.cells.conv1d import conv1d
from jaxrnn._src.core import checks, dispatch
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.compile_once import once
from jaxrnn._src.core.dtypes import arithmetic
from jaxrnn._src.core.tags import tag
from jaxrnn._src.wrappers.reparameterised import with_params
from jaxrnn._src.wrappers.stack import parallel, stack


@constructor
def rwkv4(hidden: int, *, width: int | None = None) -> Cell:
    """Time mixing of RWKV-4 (Peng et al. 2023, arXiv:2305.13048, section 3.1).

        x~ = mix * x + (1 - mix) * x_{t-1}        for each of k, v and r
        k, v, r = W x~
        n = a + exp(u + k) v                      d = b + exp(u + k)
        a = exp(-exp(w)) a + exp(k) v             b = exp(-exp(w)) b + exp(k)
        y = W_o (sigmoid(r) * n / d)

    The state has a and b divided by exp(m), where m = max(m - exp(w), k) is the stabiliser.

    Args:
      hidden: O, the size of the output and of the input.
      width: H, how many features k, v and r have; None for that of the output.

    Returns:
      A ``Cell`` with the parameters and the state of what it is made of: a ``jaxrnn.stack`` of
      k, v and r in ``jaxrnn.parallel``, each a shift with ``mix`` [O] and a ``jaxrnn.project``; of
      the recurrence, whose state is ``(a, b, m)``, each [..., H], and whose parameters are ``w``
      and ``u`` [H]; and of ``jaxrnn.project``.

    Raises:
      ValueError: in ``init``, the input has not O features.

    >>> cell = jaxrnn.rwkv4(4, width=8)
    >>> params = cell.init(jax.random.key(0), 4)
    >>> jaxrnn.unroll(cell, params, jnp.ones((7, 3, 4)))[1].shape
    (7, 3, 4)
    """
    hidden = checks.size("hidden", hidden)
    width = hidden if width is None else checks.size("width", width)
    seen = [stack(_shift(hidden), project(width, activation=f, bias=False)) for f in _OF_KVR]
    return stack(parallel(*seen), _mixed(width), project(hidden, bias=False))


_OF_KVR = (None, None, "sigmoid")


@constructor
def rwkv4_channels(hidden: int, *, width: int | None = None) -> Cell:
    """Channel mixing of RWKV-4 (Peng et al. 2023, arXiv:2305.13048, section 3.1).

        x~ = mix * x + (1 - mix) * x_{t-1}        for each of k and r
        k, r = W x~
        y = sigmoid(r) * W_v relu(k)^2

    Args:
      hidden: O, the size of the output and of the input.
      width: H, how many features k has; None for four times those of the output.

    Returns:
      A ``Cell`` with the parameters and the state of what it is made of: ``jaxrnn.parallel`` of
      k's branch, a ``jaxrnn.stack`` of a shift with ``mix`` [O] and two ``jaxrnn.project``, and of
      r's, of a shift and one.

    Raises:
      ValueError: in ``init``, the input has not O features.

    >>> cell = jaxrnn.rwkv4_channels(4)
    >>> params = cell.init(jax.random.key(0), 4)
    >>> jaxrnn.unroll(cell, params, jnp.ones((7, 3, 4)))[1].shape
    (7, 3, 4)
    """
    hidden = checks.size("hidden", hidden)
    width = 4 * hidden if width is None else checks.size("width", width)
    k = (
        _shift(hidden),
        project(width, activation=_squared_relu, bias=False),
        project(hidden, bias=False),
    )
    r = _shift(hidden), project(hidden, activation="sigmoid", bias=False)
    return parallel(stack(*k), stack(*r), merge="product")


def _squared_relu(a):
    return relu(a) ** 2


def _shift(features):
    """``mix * x + (1 - mix) * x'``: a convolution over two steps."""

    def taps(params):
        checks.check_names(params, ["mix"])
        mix = params["mix"]
        checks.check_floating("params['mix']", mix)
        return {"w": jnp.stack([mix, 1 - mix]), "b": jnp.zeros_like(mix)}

    def init(key, in_size):
        checks.check_key(key)
        checks.check_same_size(in_size, features)
        return {"mix": jnp.full(features, 0.5)}

    return with_params(conv1d(features, kernel=2, depthwise=True), taps, init)


def _mixed(width):
    """The recurrence, of k, v and sigmoid(r) side by side."""
    shapes = {"w": (width,), "u": (width,)}

    def init(key, in_size):
        del key, in_size
        return {"w": jnp.linspace(-5, 3, width), "u": jnp.zeros(width)}

    def initial_state(params, batch_shape):
        return wkv.nothing((*batch_shape, width), arithmetic(params))

    def given(params, x):
        """``(decay, u)`` [H], and k, v and r."""
        checks.check_params(params, shapes, None, x)
        checks.check_features(x, 3 * width)
        total = arithmetic(params)
        w, u = (params[name].astype(total) for name in ("w", "u"))
        return (jnp.exp(w), u), jnp.split(x.astype(total), 3, -1)

    def step(params, state, x, key=None):
        del key
        state = checks.completed_state(initial_state, params, state, x.shape[:-1])
        weights, (k, v, r) = given(params, x)
        state, y = wkv.step(*weights, state, (k, v))
        return state, (r * tag("rwkv4.wkv", y)).astype(x.dtype)

    def unroll(params, state, xs, options):
        name = options.implementation
        how = "scan of step"
        if name is None:
            how += "; on a TPU or GPU, one of stretches side by side"
        dispatch.only_reference(how, "it has no kernel", name)
        weights, (k, v, r) = given(params, xs)
        state, ys = wkv.run(
            *weights,
            initial_state(params, xs.shape[1:-1]) if state is None else state,
            k,
            v,
            mask=options.mask,
            starts=options.starts,
            reverse=options.reverse,
            at_once=name is None,
        )
        return state, (r * tag("rwkv4.wkv", ys)).astype(xs.dtype)

    return Cell(init, initial_state, step, once(unroll), states=("a", "b", "m"))
