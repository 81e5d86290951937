"""Depth over devices: the layers of a stack on the devices of a mesh axis, a chunk apart."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxrnn._src.core import checks, dispatch, dropout_masks, every_step, params_tree, wide_scan
from jaxrnn._src.core.cell import Cell, call_of, check_cell, constructor
from jaxrnn._src.core.compile_once import once
from jaxrnn._src.core.inputs import leading
from jaxrnn._src.core.sequence import resets
from jaxrnn._src.core.sharding import varying
from jaxrnn._src.wrappers.stack import in_layer, stack
from jaxrnn._src.wrappers.truncated import truncated


@constructor
def wavefront(cell: Cell, *, axis: str, chunk: int) -> Cell:
    """Layers on devices: a layer runs a chunk of steps while the one below runs the next chunk.

    A layer needs of the one below no more than the steps it is at. So n devices, each with its
    part of the layers, run n chunks at once: the pipeline of GPipe (Huang et al. 2019,
    arXiv:1811.06965), with chunks of time in place of parts of the batch (Appleyard et al. 2016,
    arXiv:1604.01946, on one GPU). Numbers are those of ``cell``, in all that ``jaxrnn.unroll``
    takes; a step is that of ``cell``.

    A gradient keeps the states before each chunk, and runs the chunk again. By count, K chunks
    are n K / (K + n - 1) times as fast as one device; with the gradient three quarters of that,
    beside a run that keeps all it needs. Devices pass on the outputs of a chunk [chunk, ...batch,
    O] at a time. Inputs and outputs are on every device; a device keeps what a gradient needs of
    its own layers alone. To divide the batch over another mesh axis, call it in a
    ``jax.shard_map`` over both.

    Parameters may be stored in parts: each array divided over ``axis``, along its last axis that
    the n devices divide. If the layers of all devices have an array alike, in name, shape and
    type, one exchange gives a device that of its own layers, and another takes its gradient back.
    Other arrays, as the first layer's weights for inputs of another size, are on every device
    while the cell runs, and so are all of them in a ``jax.shard_map`` over the axis.

    Args:
      cell: a ``jaxrnn.stack`` of layers that have a step. Each device has as many as every other:
        to put layers together that take little time, as ``dropout``, make a stack of them.
      axis: the name of the mesh axis, in the mesh that ``jax.set_mesh`` or ``jax.shard_map`` has
        set where the cell runs. In the former, all other axes have one device.
      chunk: the number of steps in a chunk; the last one may be shorter.

    Returns:
      A ``Cell`` with the parameters and the state of ``cell``.

    Raises:
      TypeError: ``cell`` is no stack.
      ValueError: a layer needs the whole sequence, as ``bidirectional`` does, or counts chunks of
        its own from the first step, as ``truncated`` does, which goes around this; the mesh has no
        such axis, or others that XLA divides arrays over, or its devices do not divide the layers;
        what a layer passes on is not an array, or not of the type that the others have.

    >>> cell = jaxrnn.stack(jaxrnn.lstm(8), jaxrnn.lstm(8))
    >>> deep = jaxrnn.wavefront(cell, axis="depth", chunk=16)
    >>> params, xs = deep.init(jax.random.key(0), 3), jnp.ones((64, 2, 3))
    >>> mesh = jax.make_mesh((1,), ("depth",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> with jax.set_mesh(mesh):
    ...     state, ys = jaxrnn.unroll(deep, params, xs)
    >>> ys.shape
    (64, 2, 8)
    """
    check_cell("wavefront", cell)
    chunk = checks.size("chunk", chunk)
    if cell.made is None or cell.made.constructor != stack:
        raise TypeError(f"wavefront: got {cell}, want a jaxrnn.stack of layers")
    if any(c.made is not None and c.made.constructor == truncated for c in _within(cell)):
        want = f"jaxrnn.truncated around it: {cell} counts chunks of its own"
        raise ValueError(f"wavefront: got a truncated layer, want {want}")
    cells = call_of(cell).args
    inits = {str(i): layer.init for i, layer in enumerate(cells)}

    def unroll(params, state, xs, options):
        steps, *batch = leading(xs)
        if state is None:
            state = cell.initial_state(params, tuple(batch))
        if steps == 0:
            return cell.unroll(params, state, xs, options)
        params = params_tree.parts(params, inits)
        reverse, mask = options.reverse, options.mask
        flip = (lambda tree: jax.tree.map(lambda a: a[::-1], tree)) if reverse else lambda a: a
        xs, mask, starts = flip((xs, mask, resets(options.starts, mask, reverse)))
        given = params, state, xs, options.replace(mask=mask, starts=starts, reverse=False)
        outputs = _outputs(cells, *given)
        run = functools.partial(_run, cells, outputs, axis, min(chunk, steps))
        state, ys = _on_devices(run, axis)(*given)
        return state, flip(ys)

    whole = once(unroll)
    return Cell(cell.init, cell.initial_state, cell.step, whole, cell.draws)


def _within(cell):
    """A cell, and all that it is made of."""
    yield cell
    if cell.made is not None:
        for part in (*cell.made.args, *dict(cell.made.kwargs).values()):
            if isinstance(part, Cell):
                yield from _within(part)


def _outputs(cells, params, state, xs, options):
    """The types of each layer's outputs, of all steps. A layer that can't run says so here."""
    found = []
    for i, (cell, before) in enumerate(zip(cells, state, strict=True)):
        own = options.replace(key=dropout_masks.fold(options.key, i))

        def both(params, state, xs, options, cell=cell):
            x = jax.tree.map(lambda a: a[0], xs)
            cell.step(params, state, x, options.key)  # what has none says so
            return cell.unroll(params, state, xs, options)[1]

        with dispatch.unrecorded(), in_layer(i, "a wavefront", cell):
            xs = jax.eval_shape(both, params[str(i)], before, xs, own)
            if i + 1 < len(cells):
                checks.check_one_output(cell, xs)
        found.append(xs)
    return found


def _on_devices(run, axis):
    """``run(layers, params, state, xs, options)`` on each device of a mesh axis.

    A device has of the parameters what ``_Layers`` keeps for it, and all of the other arrays.
    """

    def on_devices(params, *others):
        mesh = jax.sharding.get_abstract_mesh()
        if axis in mesh.manual_axes:
            layers = _Layers(params, axis, lax.axis_size(axis), divide=False)
            return run(layers, layers.params, *others)
        if axis not in mesh.axis_names:
            want = "an axis of the mesh that jax.set_mesh or jax.shard_map has set"
            raise ValueError(f"axis: got {axis!r}, want {want}: {mesh.axis_names}")
        beside = [a for a in mesh.axis_names if a not in (axis, *mesh.manual_axes)]
        divided = [name for name in beside if mesh.shape[name] > 1]
        if divided:  # its collectives would wait for devices that are at another layer
            want = "jax.shard_map over them around it, in which XLA divides nothing"
            raise ValueError(f"wavefront: got a mesh with the axes {divided} too, want {want}")
        layers, whole = _Layers(params, axis, mesh.shape[axis], divide=True), PartitionSpec()
        return jax.shard_map(
            functools.partial(run, layers),
            in_specs=(layers.specs, *(whole for _ in others)),
            out_specs=whole,
            axis_names={axis},
        )(layers.params, *others)

    return on_devices


class _Layers:
    """The layers of each device, and their parameters.

    An array that the layers of all devices have alike is divided over the devices, along its last
    axis that they divide. One exchange then gives each device those of its own layers.

    Args:
      params: those of each layer, by its number.
      axis, count: the mesh axis, and how many devices it has.
      divide: whether any are divided.

    Attributes:
      each: how many layers a device has.
      params: a list of arrays for each device.
      specs: how they are divided.
    """

    def __init__(self, params, axis, count, *, divide):
        if len(params) % count:
            want = f"a multiple of the {count} devices of {axis!r}: put some together by"
            raise ValueError(f"wavefront: got {len(params)} layers, want {want} jaxrnn.stack")
        self.each, self.axis = len(params) // count, axis
        of_device = [[params[str(i)] for i in self.of(k)] for k in range(count)]
        self.params, self.trees = zip(*map(jax.tree.flatten, of_device), strict=True)
        self.divided = {}  # where, of the arrays with these numbers
        if divide and len(set(self.trees)) == 1:
            for k, (a, *others) in enumerate(zip(*self.params, strict=True)):
                where = [i for i, size in enumerate(a.shape) if size % count == 0 and size]
                if where and all((b.shape, b.dtype) == (a.shape, a.dtype) for b in others):
                    self.divided[k] = where[-1]

    @property
    def specs(self):
        divided = {k: PartitionSpec(*[None] * i, self.axis) for k, i in self.divided.items()}
        return tuple([divided.get(k, PartitionSpec()) for k in range(len(a))] for a in self.params)

    def of(self, number):
        """The numbers of the layers that a device has."""
        return range(number * self.each, (number + 1) * self.each)

    def exchanged(self, params):
        """A device's own of what was divided, by its number, from its parts of all."""
        stacked = {k: jnp.stack([own[k] for own in params]) for k in self.divided}
        swap = functools.partial(lax.all_to_all, axis_name=self.axis, split_axis=0, tiled=True)
        return {k: swap(a, concat_axis=self.divided[k] + 1)[0] for k, a in stacked.items()}

    def of_device(self, params, own, number):
        """The parameters of these layers."""
        leaves = [own.get(k, a) for k, a in enumerate(params[number])]
        return self.trees[number].unflatten(leaves)


def _run(cells, outputs, axis, chunk, of_devices, params, state, xs, options):
    """The whole sequence, from the first step to the last, on one device of several."""
    count, stage = lax.axis_size(axis), lax.axis_index(axis)
    each, (steps, *batch) = of_devices.each, leading(xs)
    chunks, mask = -(-steps // chunk), options.mask
    if chunks * chunk > steps and mask is None:
        mask = jnp.ones(leading(xs), bool)

    def cut(a, more=0):
        """[T, ...] as [chunks, chunk, ...], filled up with zeros, and so many chunks of them."""
        rest = jnp.zeros(((chunks + more) * chunk - steps, *a.shape[1:]), a.dtype)
        return jnp.concatenate([a, rest]).reshape(chunks + more, chunk, *a.shape[1:])

    xs = jax.tree.map(lambda a: cut(a, count - 1), xs)  # one for each turn of the first device
    flags = jax.tree.map(cut, (mask, options.starts))
    sent = _Message([outputs[i] for i in range(each - 1, len(cells) - 1, each)], (chunk, *batch))
    of_chunk = lambda a: jnp.zeros((chunk, *a.shape[1:]), a.dtype)
    nothing = sent.nothing(), jax.tree.map(of_chunk, outputs[-1])
    given = params, of_devices.exchanged(params), state, xs, flags, nothing, stage
    params, own, state, xs, flags, nothing, stage = varying(given)

    def layers(number):
        """The layers of a device, on a chunk: their states, what it passes on, and its outputs."""

        def run(state, x, message, flags):
            x = sent.read(message, number - 1) if number else x
            after, (mask, starts) = list(state), flags
            weights = of_devices.of_device(params, own, number)
            for i, inner in zip(of_devices.of(number), weights, strict=True):
                key = dropout_masks.fold(options.key, i)
                given = options.replace(mask=mask, starts=starts, key=key)
                args = inner, state[i], x, given
                with jax.named_scope(str(i)), in_layer(i, "a wavefront", cells[i]):
                    after[i], x = every_step.run(cells[i], *args, every=False)
            last = number == count - 1
            both = (nothing[0], x) if last else (sent.write(x), nothing[1])
            return varying((tuple(after), *both, stage))[:-1]

        return run

    def wait(state, x, message, flags):
        del x, message, flags
        return state, *nothing

    turns = [*map(layers, range(count)), wait]

    @jax.checkpoint
    def turn(carry, given):
        (state, message), (number, x) = carry, given
        place = number - stage
        own = jnp.clip(place, 0, chunks - 1)
        now = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, own, keepdims=False), flags)
        which = jnp.where((place >= 0) & (place < chunks), stage, count)
        state, message, ys = lax.switch(which, turns, state, x, message, now)
        message = lax.ppermute(message, axis, [(k, k + 1) for k in range(count - 1)])
        return (state, message), ys

    numbers = jnp.arange(chunks + count - 1, dtype=jnp.int32)
    (state, _), ys = wide_scan.scan(turn, (state, nothing[0]), (numbers, xs))

    def of(number, tree):
        """The arrays of one device, on all."""
        return jax.tree.map(lambda a: _sum(jnp.where(stage == number, a, jnp.zeros_like(a))), tree)

    def _sum(a):
        return lax.psum(a.astype(jnp.int32), axis) > 0 if a.dtype == bool else lax.psum(a, axis)

    state = tuple(of(i // each, own) for i, own in enumerate(state))
    ys = jax.tree.map(lambda a: a[count - 1 :].reshape(chunks * chunk, *a.shape[2:])[:steps], ys)
    return state, of(count - 1, ys)


class _Message:
    """What devices pass on, the same of all: [chunk, ...batch, most features].

    Args:
      outputs: the types of what each of them passes on, [T, ...batch, ...].
      lead: [chunk, ...batch].
    """

    def __init__(self, outputs, lead):
        self.lead, self.features = lead, [a.shape[len(lead) :] for a in outputs]
        self.size = max(map(math.prod, self.features), default=0)
        types = {a.dtype for a in outputs} or {jnp.dtype("float32")}
        if len(types) > 1:
            names = ", ".join(sorted(t.name for t in types))
            raise ValueError(f"wavefront: got layers with outputs of {names}, want one type")
        (self.dtype,) = types

    def nothing(self):
        return jnp.zeros((*self.lead, self.size), self.dtype)

    def write(self, a):
        a = a.reshape(*self.lead, math.prod(a.shape[len(self.lead) :]))
        rest = jnp.zeros((*self.lead, self.size - a.shape[-1]), a.dtype)
        return jnp.concatenate([a, rest], -1)

    def read(self, message, number):
        features = self.features[number]
        return message[..., : math.prod(features)].reshape(*self.lead, *features)
