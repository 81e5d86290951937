"""Convolutional LSTM and GRU, over places of one to three dimensions."""

from jaxrnn._src.builders.spatial import spatial
from jaxrnn._src.cells.gru import reset_before
from jaxrnn._src.cells.lstm import lstm_update
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.ops.step_loop import split


@constructor
def conv_lstm(
    hidden: int,
    *,
    shape: tuple[int, ...],
    kernel: int | tuple[int, ...] = 3,
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
    forget_bias: float = 1.0,
) -> Cell:
    """Convolutional LSTM (Shi et al. 2015, arXiv:1506.04214), without its peepholes.

        i, f, o = sigmoid(W * x + R * h + b)      g = tanh(W_g * x + R_g * h + b_g)
        c = f * c + i * g                         h = o * tanh(c)

    where W * x is a convolution over places, padded with zeros ("SAME"). The paper's peepholes,
    which Keras and Flax leave out too, have a weight for each place.

    Features are one axis here too: ``xs.reshape(*xs.shape[:-3], -1)`` for images [H, W, C].

    Args:
      hidden: H, the channels of the state and the output at each place.
      shape: of the places of the input, 1 to 3 numbers, as ``(height, width)``.
      kernel: the size of the convolutions, of W and R: one number, or one for each axis.
      stride: every how many places of the input the output has one, as ``kernel``: along an axis
        of n places it has ceil(n / stride).
      dilation: how many places apart the taps of W are, as ``kernel``. R has neither of the two.
      forget_bias: what the forget gate's bias begins at.

    Returns:
      A ``Cell``. Inputs have S * C features, C channels at each of the S places of ``shape``; with
      P places of the output, outputs and the state ``(h, c)`` are [..., P * H]. Parameters ``w``
      [*kernel, C, 4, H], ``r`` [*kernel, H, 4, H] and ``b`` [4, H], gates in the order i f g o.

    Raises:
      ValueError: a size that is not positive, or not one for each axis; features that are not
        as many at each place.

    >>> cell = jaxrnn.stack(
    ...     jaxrnn.conv_lstm(4, shape=(6, 8), stride=2), jaxrnn.conv_lstm(2, shape=(3, 4))
    ... )
    >>> images = jnp.ones((5, 10, 6, 8, 3))  # [T, B, height, width, channels]
    >>> xs = images.reshape(5, 10, -1)
    >>> params = cell.init(jax.random.key(0), xs.shape[-1])
    >>> jaxrnn.unroll(cell, params, xs)[1].reshape(5, 10, 3, 4, 2).shape
    (5, 10, 3, 4, 2)
    """

    def step(_, state, x, dot):
        state = lstm_update(state, x, split(dot("r", state[0]), 4))
        return state, state[0]

    return spatial(
        hidden,
        step,
        ("r",),
        states=("h", "c"),
        bias=(0.0, forget_bias, 0.0, 0.0),
        shape=shape,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
    )


@constructor
def conv_gru(
    hidden: int,
    *,
    shape: tuple[int, ...],
    kernel: int | tuple[int, ...] = 3,
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
) -> Cell:
    """Convolutional GRU (Ballas et al. 2016, arXiv:1511.06432).

        r, z = sigmoid(W * x + R * h + b)      n = tanh(W_n * x + R_n * (r * h) + b_n)
        h = (1 - z) * n + z * h

    where W * x is a convolution over places, padded with zeros ("SAME"). As in the paper, the
    reset gate acts on the state before the convolution, so a step has two, one after the other.

    Args:
      hidden, shape, kernel, stride, dilation: see ``jaxrnn.conv_lstm``.

    Returns:
      A ``Cell``. Inputs have S * C features, C channels at each of the S places of ``shape``; with
      P places of the output, outputs and the state ``(h,)`` are [..., P * H]. Parameters ``w``
      [*kernel, C, 3, H], ``r`` [*kernel, H, 3, H] and ``b`` [3, H], gates in the order r z n.

    Raises:
      ValueError: see ``jaxrnn.conv_lstm``.

    >>> cell = jaxrnn.conv_gru(4, shape=(16,))
    >>> params = cell.init(jax.random.key(0), 16 * 3)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((5, 2, 16 * 3)))
    >>> ys.shape, params["r"].shape
    ((5, 2, 64), (3, 4, 3, 4))
    """
    products = lambda params: {"rz": params["r"][..., :2, :], "n": params["r"][..., 2:, :]}
    return spatial(
        hidden,
        reset_before,
        products,
        states=("h",),
        bias=(0.0, 0.0, 0.0),
        shape=shape,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
    )
