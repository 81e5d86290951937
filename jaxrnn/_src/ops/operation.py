"""An operation: one meaning, several implementations, every JAX transform.

A fused kernel computes a function and its gradient, and knows nothing of ``jvp``, ``vmap`` or a
second derivative. ``Operation`` gives it all of them. It holds three primitives:

  forward    the outputs and, when a gradient will be wanted, residuals
  tangent    the linear map from input tangents to output tangents
  backward   the transpose of ``tangent``: the fused gradient

``forward`` differentiates into ``tangent``; reverse mode transposes ``tangent`` into ``backward``.
So ``grad`` runs the two fused functions, and everything else (``jvp``, ``hessian``, ``jacfwd``)
falls back on the derivative of the reference, which is plain JAX and differentiable for ever.
``custom_vjp`` would have closed forward mode for good.

Which implementation runs is decided when a primitive is lowered, for the platform it is lowered
for: one exported module can hold a different one for each platform.

``vmap`` over data adds a batch axis. ``vmap`` over weights is written down in ``maps`` and carried
out at lowering, so that an ensemble is still one fused operation when it is differentiated.

What nobody uses is not made: JAX's removal of dead code, which ``jit`` begins with, takes it off
``wanted``.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

from jaxrnn._src.core import dispatch
from jaxrnn._src.core.compile_once import once_each
from jaxrnn._src.core.lowering_target import PLATFORMS, Target, of_lowering
from jaxrnn._src.core.sharding import wants_devices
from jaxrnn._src.core.typing import Array

PLAIN = Target(None)  # plain JAX, for any platform
WEIGHT = None  # in place of a batch axis: an operand shared by all rows of the batch


class Implementation(dispatch.Candidate, Protocol):
    """One way to compute an operation: a module with these functions, of JAX or custom calls.

    ``problem`` is static, and ``operands`` a NamedTuple of array trees; what their axes are, the
    operation says.
    """

    def forward(
        self, problem: Any, operands: Any, wanted: Sequence[bool], save: bool, target: Target, /
    ) -> Sequence[Array | None]:
        """The outputs, then the residuals if ``save``.

        ``wanted`` says of each output whether anybody uses it; in place of one that is not wanted
        may come anything, or None.
        """
        ...

    def backward(
        self,
        problem: Any,
        operands: Any,
        outputs: Sequence[Array | None],
        residuals: Sequence[Array],
        cotangents: Sequence[Array | None],
        wanted: Any,
        target: Target,
        /,
    ) -> Any:
        """The gradients, a tree like ``operands``.

        ``outputs`` has None for one that ``reads`` of the operation leaves out, ``cotangents`` for
        one on which nothing depends. ``wanted`` is a tree like ``operands`` that says of each
        array whether its gradient is wanted; the others are thrown away.
        """
        ...


class Operation:
    """Builds the primitives of an operation.

    Args:
      name: appears in jaxprs as ``name``, ``name_tangent``, ``name_backward``.
      implementations: by name, the best first. The last runs everything on any platform; it also
        defines the residuals' shapes.
      reference: ``(problem, operands) -> outputs``, plain JAX; ``problem`` is hashable,
        ``operands`` a NamedTuple of array trees, ``outputs`` a tuple of arrays.
      operand_axes: for each field of ``operands``, where its batch axes begin, or ``WEIGHT``.
      output_axes: ``problem -> `` the same for each output.
      residual_axis: the same for all residuals.
      reads: ``(problem, operands) -> `` of each output, whether a backward reads it; this depends
        on types, and on which operands there are.
      folded: ``problem -> problem``, called when ``vmap`` has added a batch axis that lies before
        all others in memory; the result means the same.

    An operation lowers to ``forward`` and ``backward`` of an ``Implementation``.
    """

    def __init__(
        self,
        name: str,
        implementations: Mapping[str, Implementation],
        *,
        reference: Callable[[Any, Any], Sequence[Array]],
        operand_axes: Mapping[str, int | None],
        output_axes: Callable[[Any], tuple[int, ...]],
        residual_axis: int,
        reads: Callable[[Any, Any], tuple[bool, ...]],
        folded: Callable[[Any], Any] = lambda problem: problem,
    ) -> None:
        self.implementations, self.default = implementations, [*implementations.values()][-1]
        self.reference, self.plain = reference, once_each(reference)
        self.operand_axes, self.output_axes = operand_axes, output_axes
        self.residual_axis, self.reads, self.folded = residual_axis, reads, folded
        self.forward = self._primitive(name, self._forward, self._forward_batched)
        self.tangent = self._primitive(f"{name}_tangent", self._tangent, self._tangent_batched)
        self.backward = self._primitive(f"{name}_backward", self._backward, self._backward_batched)
        ad.primitive_jvps[self.forward] = _without_devices(self._forward_jvp)
        ad.primitive_jvps[self.tangent] = _without_devices(self._tangent_jvp)
        ad.primitive_jvps[self.backward] = _without_devices(self._backward_jvp)
        ad.primitive_transposes[self.tangent] = _without_devices(self._tangent_transpose)
        pe.dce_rules[self.forward] = _unless_all_dead(self._forward_used)
        pe.dce_rules[self.backward] = _unless_all_dead(self._backward_used)

    def __call__(self, problem: Any, operands: Any) -> tuple[Array, ...]:
        """Returns the outputs, a tuple of arrays."""
        flat, tree = jax.tree.flatten(operands)
        wanted = (True,) * len(self.output_axes(problem))
        return tuple(
            self.forward.bind(
                *flat, problem=problem, tree=tree, wanted=wanted, save=False, maps=()
            )
        )

    def chosen(
        self, described: str, problem: dispatch.Problem, operands: Any
    ) -> Callable[[Any, Any], tuple[Array, ...]]:
        """This operation, or its reference, if that was asked for by name; tells ``explain``.

        Raises:
          ValueError: no implementation has the name, or the one that has cannot run this.
        """
        dispatch.check(self.implementations, problem.implementation)
        dispatch.record(described, self.implementations, problem, operands)
        return self.plain if problem.implementation == dispatch.REFERENCE else self

    # The three functions, as they are lowered. Each takes the primitive's parameters and a
    # target (PLAIN: the default implementation) and gives a function of flat arrays.

    def _forward(self, target=PLAIN, *, problem, tree, wanted, save, maps):
        def function(*flat):
            operands = tree.unflatten(flat)
            module = self._implementation(problem, operands, target)
            out = list(module.forward(problem, operands, wanted, save, target))
            return [*_picked(wanted, out), *out[len(wanted) :]]

        return _mapped(function, maps)

    def _tangent(self, target=PLAIN, *, problem, tree, present, maps):
        del target  # the derivative of the reference serves all

        def function(*flat):
            primals, _, tangents = _split(flat, tree.num_leaves, -sum(present))
            return _jvp(self._reference(problem, tree), primals, _where(present, tangents))[1]

        return _mapped(function, maps)

    def _backward(self, target=PLAIN, *, problem, tree, wanted, given, maps, sums):
        def function(*flat):
            flat, saved, cotangents = _split(flat, tree.num_leaves, -sum(given))
            operands = tree.unflatten(flat)
            module = self._implementation(problem, operands, target)
            reads = self.reads(problem, operands)
            count = sum(reads)
            gradients = module.backward(
                problem,
                operands,
                _where(reads, saved[:count]),
                saved[count:],
                _where(given, cotangents),
                tree.unflatten(wanted),
                target,
            )
            return _picked(wanted, tree.flatten_up_to(gradients))

        return _mapped(function, maps, sums)

    def _implementation(self, problem: Any, operands: Any, target: Target) -> Implementation:
        if target is PLAIN:
            return self.default
        return dispatch.choose(self.implementations, problem, operands, target)

    def _reference(self, problem, tree):
        return lambda *flat: list(self.reference(problem, tree.unflatten(flat)))

    # Differentiation.

    def _forward_jvp(self, primals, tangents, *, problem, tree, wanted, save, maps):
        parameters = dict(problem=problem, tree=tree, maps=maps)
        if save:  # a gradient is being differentiated: its residuals have tangents too
            saved = self.forward.bind(*primals, wanted=wanted, save=True, **parameters)
            plain = self._forward(wanted=wanted, save=True, **parameters)
            return saved, _jvp(plain, primals, tangents)[1]
        reads = self.reads(problem, tree.unflatten(primals))
        both = tuple(map(operator.or_, wanted, reads))
        saved = self.forward.bind(*primals, wanted=both, save=True, **parameters)
        outputs, residuals = _where(both, saved), saved[sum(both) :]
        saved = (*_picked(reads, outputs), *residuals)
        present = _present(tangents)
        flags = tuple(level + (True,) * len(saved) + _picked(present, level) for level in maps)
        out = self.tangent.bind(
            *primals,
            *saved,
            *_picked(present, tangents),
            problem=problem,
            tree=tree,
            present=present,
            maps=flags,
        )
        return _picked(wanted, outputs), _picked(wanted, out)

    def _tangent_jvp(self, args, tangents, *, problem, tree, present, maps):
        parameters = dict(problem=problem, tree=tree, maps=maps)
        out = self.tangent.bind(*args, present=present, **parameters)
        fixed = len(args) - sum(present)
        moving = _present(tangents[fixed:])
        parts = []
        if any(moving):  # linear in the tangents: the same map again
            keep = (True,) * fixed + moving
            flags = tuple(_picked(keep, level) for level in maps)
            parts.append(
                self.tangent.bind(
                    *args[:fixed],
                    *_picked(moving, tangents[fixed:]),
                    present=_narrowed(present, moving),
                    **{**parameters, "maps": flags},
                )
            )
        operands = tree.num_leaves
        if any(_present(tangents[:operands])):  # what was saved is a function of the operands
            plain = self._tangent(present=present, **parameters)
            rest = [None] * (len(args) - operands)
            parts.append(_jvp(plain, args, (*tangents[:operands], *rest))[1])
        if not parts:
            return out, [ad.Zero(jax.typeof(o)) for o in out]
        return out, [functools.reduce(jnp.add, together) for together in zip(*parts)]

    def _tangent_transpose(self, cotangents, *args, problem, tree, present, maps):
        known = len(args) - sum(present)
        linear = tuple(ad.is_undefined_primal(a) for a in args[known:])
        wanted = _narrowed(present, linear)
        given = _present(cotangents)
        if not any(given):
            zeros = [ad.Zero(a.aval) if ad.is_undefined_primal(a) else None for a in args]
            return zeros
        flags = tuple(level[:known] + (True,) * sum(given) for level in maps)
        sums = tuple(_picked(linear, level[known:]) for level in maps)
        gradients = iter(
            self.backward.bind(
                *args[:known],
                *_picked(given, cotangents),
                problem=problem,
                tree=tree,
                wanted=wanted,
                given=given,
                maps=flags,
                sums=sums,
            )
        )
        return [None] * known + [next(gradients) if is_linear else None for is_linear in linear]

    def _backward_jvp(self, args, tangents, *, problem, tree, wanted, given, maps, sums):
        out = self.backward.bind(
            *args, problem=problem, tree=tree, wanted=wanted, given=given, maps=maps, sums=sums
        )
        operands = tree.num_leaves

        def plain(*flat):
            flat, _, cotangents = _split(flat, operands, -sum(given))
            outputs, pull = jax.vjp(
                lambda *moving: self._reference(problem, tree)(*_merged(wanted, flat, moving)),
                *_picked(wanted, flat),
            )
            return list(pull(_filled(given, cotangents, outputs)))

        first = len(args) - sum(given)
        rest = [None] * (first - operands)
        moving = (*tangents[:operands], *rest, *tangents[first:])
        return out, _jvp(_mapped(plain, maps, sums), args, moving)[1]

    # Dead code: `used` says of each result whether anybody uses it.

    def _forward_used(self, used, wanted, save, **_):
        count = sum(wanted)
        saves = any(used[count:])
        kept = used[:count] + (saves,) * len(used[count:])
        return kept, {"wanted": _narrowed(wanted, used), "save": saves}

    def _backward_used(self, used, wanted, sums, **_):
        sums = tuple(_picked(used, level) for level in sums)
        return used, {"wanted": _narrowed(wanted, used), "sums": sums}

    # Batching. Data that is batched gets one more batch axis, which costs nothing. Anything else
    # (batched weights, or a gradient for weights wanted of each row) becomes a level of `maps`.

    def _forward_batched(self, args, dims, *, problem, tree, wanted, save, maps):
        axes = self._axes(tree)
        bind = functools.partial(
            self.forward.bind, problem=problem, tree=tree, wanted=wanted, save=save
        )
        if not self._folds(axes, dims):
            return self._add_level(bind, args, dims, maps=maps)
        fold = self._fold(args, dims, axes, maps)
        out = bind(*fold, problem=self._refolded(problem, dims, maps), maps=maps)
        axes = self._saved_axes(problem, wanted, len(out))
        return out, [len(maps) + axis for axis in axes]

    def _tangent_batched(self, args, dims, *, problem, tree, present, maps):
        axes = self._axes(tree)
        count = len(args) - len(axes) - sum(present)
        saved = self._saved_axes(problem, self._reads(problem, tree, args), count)
        axes = (*axes, *saved, *_picked(present, axes))
        bind = functools.partial(self.tangent.bind, problem=problem, tree=tree, present=present)
        if not self._folds(axes, dims):
            return self._add_level(bind, args, dims, maps=maps)
        out = bind(*self._fold(args, dims, axes, maps), maps=maps)
        return out, [len(maps) + axis for axis in self.output_axes(problem)]

    def _backward_batched(self, args, dims, *, problem, tree, wanted, given, maps, sums):
        axes = operands = self._axes(tree)
        count = len(args) - len(axes) - sum(given)
        saved = self._saved_axes(problem, self._reads(problem, tree, args), count)
        axes = (*axes, *saved, *_picked(given, self.output_axes(problem)))
        bind = functools.partial(
            self.backward.bind, problem=problem, tree=tree, wanted=wanted, given=given
        )
        if not self._folds(axes, dims) or WEIGHT in _picked(wanted, operands):
            sums = ((True,) * sum(wanted), *sums)
            return self._add_level(functools.partial(bind, sums=sums), args, dims, maps=maps)
        fold = self._fold(args, dims, axes, maps)
        out = bind(*fold, problem=self._refolded(problem, dims, maps), maps=maps, sums=sums)
        levels = [sum(level[i] for level in sums) for i in range(len(out))]
        return out, [n + axis for n, axis in zip(levels, _picked(wanted, operands))]

    def _axes(self, tree):
        """Where the batch axes of each flat operand begin."""
        fields = tree.unflatten(range(tree.num_leaves))._asdict()
        axes = [WEIGHT] * tree.num_leaves
        for field, value in fields.items():
            for leaf in jax.tree.leaves(value):
                axes[leaf] = self.operand_axes[field]
        return tuple(axes)

    def _saved_axes(self, problem, flags, count):
        """The same of ``count`` arrays: the outputs with a flag, then residuals."""
        axes = _picked(flags, self.output_axes(problem))
        return (*axes, *(self.residual_axis,) * (count - len(axes)))

    def _reads(self, problem, tree, args):
        return self.reads(problem, tree.unflatten(args[: tree.num_leaves]))

    def _folds(self, axes, dims):
        """The first operand is batched, and no weight is."""
        weights = [dim for axis, dim in zip(axes, dims) if axis is WEIGHT]
        return dims[0] is not None and all(dim is None for dim in weights)

    def _fold(self, args, dims, axes, maps):
        size = _size(args, dims)
        out = []
        for i, (arg, dim, axis) in enumerate(zip(args, dims, axes)):
            if axis is not WEIGHT:
                to = axis + sum(level[i] for level in maps)
                if dim is None:
                    shape = (*arg.shape[:to], size, *arg.shape[to:])
                    arg = jnp.broadcast_to(jnp.expand_dims(arg, to), shape)
                else:
                    arg = jnp.moveaxis(arg, dim, to)
            out.append(arg)
        return out

    def _refolded(self, problem, dims, maps):
        first = dims[0] == sum(level[0] for level in maps)
        return self.folded(problem) if first else problem

    def _add_level(self, bind, args, dims, maps):
        args = [a if dim is None else jnp.moveaxis(a, dim, 0) for a, dim in zip(args, dims)]
        out = bind(*args, maps=(tuple(dim is not None for dim in dims), *maps))
        return out, [0] * len(out)

    def _primitive(self, name, build, batched):
        primitive, build = _ToldOfDevices(name), _without_devices(build)

        @functools.lru_cache(1024)
        def compiled(parameters):
            return jax.jit(lambda *args: primitive.bind(*args, **dict(parameters)))

        @functools.lru_cache(1024)
        def shapes(avals, parameters):
            return jax.make_jaxpr(build(**dict(parameters)))(*avals).out_avals

        def evaluate(*args, **parameters):
            return compiled(tuple(sorted(parameters.items(), key=lambda p: p[0])))(*args)

        def abstract(*avals, **parameters):
            return shapes(avals, tuple(sorted(parameters.items(), key=lambda p: p[0])))

        def lower(platform, context, *args, **parameters):
            target = PLAIN
            if platform:
                members = _members(context.avals_in, parameters["maps"])
                target = of_lowering(platform, context)._replace(members=members)
            function = build(target, **parameters)
            return mlir.lower_fun(function, multiple_results=True)(context, *args)

        primitive.def_impl(evaluate)
        primitive.def_abstract_eval(abstract)
        mlir.register_lowering(primitive, functools.partial(lower, None))
        for platform in PLATFORMS:
            rule = functools.partial(lower, platform)
            mlir.register_lowering(primitive, rule, platform=platform)
        batching.primitive_batchers[primitive] = _without_devices(batched)
        return primitive


class _ToldOfDevices(Primitive):
    """A primitive whose lowering knows the devices: see ``sharding.wants_devices``."""

    multiple_results = True

    def bind(self, *args: Any, **parameters: Any) -> Any:
        return super().bind(*args, **(parameters | {"devices": wants_devices()}))


def _without_devices(rule):
    """``rule`` of all parameters but what ``_ToldOfDevices`` adds."""

    @functools.wraps(rule)
    def told(*args, devices, **parameters):
        del devices
        return rule(*args, **parameters)

    return told


def _unless_all_dead(rule):
    """A rule for JAX's removal of dead code.

    Args:
      rule: ``(used, **parameters) -> (kept, parameters)``: which results stay, and the parameters
        that change.
    """

    def narrowed(used, *others):
        *_, equation = others  # since JAX 0.12 it comes after what is known of references
        used = tuple(used)
        if not any(used) and not equation.effects:
            return [False] * len(equation.invars), None
        if any(used) and not all(used):
            kept, parameters = rule(used, **equation.params)
            equation = equation.replace(
                outvars=list(_picked(kept, equation.outvars)),
                params=equation.params | parameters,
            )
        return [True] * len(equation.invars), equation

    return narrowed


def _narrowed(wanted, used):
    """``wanted`` without what is not used of it."""
    left = iter(used)
    return tuple(flag and next(left) for flag in wanted)


def _mapped(function, maps, sums=()):
    """``function`` under a vmap for each level of ``maps``, the last level innermost.

    A level says of each argument whether it is mapped; of ``sums``, of each result: the results
    that are not mapped are summed over the level.
    """
    for level, flags in reversed(list(enumerate(maps))):
        mapped = jax.vmap(function, in_axes=[0 if flag else None for flag in flags])
        kept = sums[level] if sums else None
        function = functools.partial(_sum_unmapped, mapped, kept)
    return function


def _members(args, maps):
    """How many runs of a function ``_mapped`` makes of one."""
    count = 1
    for depth, flags in enumerate(maps):
        first = flags.index(True)
        count *= args[first].shape[sum(level[first] for level in maps[:depth])]
    return count


def _sum_unmapped(mapped, kept, *args):
    out = mapped(*args)
    if kept is None:
        return out
    return [o if keep else o.sum(0) for o, keep in zip(out, kept)]


def _jvp(function, primals, tangents):
    """``jax.jvp`` where a tangent may be None or a symbolic zero."""
    present = tuple(t is not None and type(t) is not ad.Zero for t in tangents)
    return jax.jvp(
        lambda *moving: function(*_merged(present, primals, moving)),
        _picked(present, primals),
        _picked(present, tangents),
    )


def _present(tangents):
    return tuple(type(t) is not ad.Zero for t in tangents)


def _picked(flags, values):
    """The values whose flag is true."""
    return tuple(value for flag, value in zip(flags, values) if flag)


def _where(flags, values):
    """The values at the true flags, None at the others: the inverse of ``_picked``."""
    values = iter(values)
    return tuple(next(values) if flag else None for flag in flags)


def _merged(flags, fixed, moving):
    moving = iter(moving)
    return [next(moving) if flag else value for flag, value in zip(flags, fixed)]


def _filled(flags, values, like):
    values = iter(values)
    return [next(values) if flag else jnp.zeros_like(a) for flag, a in zip(flags, like)]


def _split(flat, head, tail):
    """``flat`` in three: the first ``head``, the last ``-tail``, and what lies between."""
    end = len(flat) + tail
    return flat[:head], flat[head:end], flat[end:]


def _size(args, dims):
    return next(a.shape[dim] for a, dim in zip(args, dims) if dim is not None)
