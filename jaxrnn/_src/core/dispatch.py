"""Choosing an implementation, and saying why.

A table of implementations is a dict from a name to an implementation, the best first.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import jax

from jaxrnn._src.core.lowering_target import Target

REFERENCE = "reference"
# All that `implementation=` can be, of any operation.
NAMES = (REFERENCE, "xla", "cpu", "tpu", "gpu")
# The same of what is never chosen, and runs only if it is asked for.
NEWTON = "newton"

# Whether an exported program may call what only this library can make known to XLA. A context of
# JAX's: a function that was traced and lowered without is traced and lowered again.
keeping_kernels = jax.make_user_context(default_value=False)
ON_REQUEST = "on request"  # what a module's EXPORTED may be, beside True, the default, and False


class Problem(Protocol):
    """The static half of what an operation is given: hashable, with fields of its own beside."""

    @property
    def implementation(self) -> str | None:
        """The one that was asked for by name."""
        ...


class Candidate(Protocol):
    """What an implementation is asked before it is chosen: a module with this function.

    ``problem`` and ``operands`` are the operation's own. A module may also say ``EXPORTED =
    False``: what it lowers to does not run without this library.
    """

    def unsupported(self, problem: Any, operands: Any, target: Target, /) -> str | None:
        """The reason why it cannot run this on ``target``, as a user should read it, or None."""
        ...


C = TypeVar("C", bound=Candidate)


class Choice(NamedTuple):
    """What one operation of a cell runs on.

    Attributes:
      operation: the operation and its sizes.
      runs: the implementation's name.
      others: why each other implementation does not run.
      how: more about what runs, if there is more to say.
      solved: of ``newton``, what it did: ``ops.newton.Solved``.
      gates, states: names of those of the cell that it is an operation of.
    """

    operation: str
    runs: str
    others: dict[str, str]
    how: str = ""
    solved: Any = None
    gates: tuple[str, ...] = ()
    states: tuple[str, ...] = ()

    def told(self, solved: Any) -> "Choice":
        """With the numbers of what Newton's method did; None if they are not known."""
        if solved is None:
            return self._replace(solved=None)
        most, rest = int(solved.iterations.max(initial=0)), int((~solved.converged).sum())
        how = f"{self.how}; {most} iterations"
        how += f", {rest} of {solved.converged.size} rows step by step" if rest else ""
        return self._replace(how=how, solved=solved)


class Explanation(NamedTuple):
    """What ``jaxrnn.explain`` found; prints as a table.

    Attributes:
      cell: the cell, as it prints.
      platform: the platform or the chip asked about.
      choices: one for each operation of the cell, in the order they run.
    """

    cell: str
    platform: str
    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        lines = [f"{self.cell} on {self.platform}"]
        for choice in self.choices:
            lines.append(f"  {choice.operation}")
            named = {"gates": choice.gates, "states": choice.states}
            named = [f"{kind} {' '.join(names)}" for kind, names in named.items() if names]
            lines += [f"    {', '.join(named)}"] if named else []
            how = f": {choice.how}" if choice.how else ""
            lines.append(f"    {choice.runs:<10} runs{how}")
            lines += [f"    {name:<10} no: {why}" for name, why in choice.others.items()]
        if not self.choices:
            lines.append("  no recurrence, nothing to choose")
        return "\n".join(lines)


def choose(table: Mapping[str, C], problem: Problem, operands: Any, target: Target) -> C:
    """The module that runs ``problem`` on a ``Target``.

    A program that is exported gets what can run without this library, unless it is named.

    Raises:
      ValueError: ``problem.implementation`` names one that cannot.
    """
    name = problem.implementation
    if name is None:
        modules = (m for m in table.values() if not target.exported or _stays(m))
        return next(m for m in modules if m.unsupported(problem, operands, target) is None)
    why = table[name].unsupported(problem, operands, target)
    if why is not None:
        raise ValueError(f"implementation={name!r} cannot run this on {target.platform}: {why}")
    return table[name]


def _stays(module: Candidate) -> bool:
    """Whether an exported program may hold what the module makes."""
    exported = getattr(module, "EXPORTED", True)
    return keeping_kernels.value if exported == ON_REQUEST else exported


def check(table: Mapping[str, Candidate], name: str | None) -> None:
    """The operation has the implementation that was asked for, on some platform.

    Raises:
      ValueError: it has not.
    """
    known = (REFERENCE, *table)
    if name is not None and name not in known:
        raise ValueError(f"implementation: got {name!r}, but this operation has only {known}")


_recorder: contextvars.ContextVar[tuple[Target, list[Choice]] | None] = contextvars.ContextVar(
    "recorder", default=None
)


@contextlib.contextmanager
def recording(target: Target) -> Iterator[list[Choice]]:
    """Collects into the list it gives the choices of all operations traced inside."""
    choices: list[Choice] = []
    token = _recorder.set((target, choices))
    try:
        yield choices
    finally:
        _recorder.reset(token)


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """A context for what an operation is made of: its own choices are nobody's question."""
    token = _recorder.set(None)
    try:
        yield
    finally:
        _recorder.reset(token)


def in_loop() -> contextlib.AbstractContextManager[None]:
    """A context for a loop's body: what Newton's method did in each turn is known only there."""
    return _changing(lambda choice: choice._replace(solved=None))


def within(
    gates: tuple[str, ...], states: tuple[str, ...]
) -> contextlib.AbstractContextManager[None]:
    """A context for a cell whose gates and states have these names.

    What a cell inside of it does has the names of that one.
    """

    def named(choice):
        known = choice.gates or choice.states
        return choice if known else choice._replace(gates=gates, states=states)

    return _changing(named)


@contextlib.contextmanager
def _changing(change: Callable[[Choice], Choice]) -> Iterator[None]:
    """A context whose choices are told as ``change`` makes them."""
    recorder = _recorder.get()
    count = 0 if recorder is None else len(recorder[1])
    yield
    if recorder is not None:
        recorder[1][count:] = map(change, recorder[1][count:])


def is_recording() -> bool:
    """Whether somebody wants to know what is chosen."""
    return _recorder.get() is not None


def record(
    operation: str, table: Mapping[str, Candidate], problem: Problem, operands: Any
) -> None:
    """Tells ``explain`` what ``operation`` runs on; nothing if nobody asked."""
    if (recorder := _recorder.get()) is None:
        return
    target, choices = recorder
    asked, runs, others = problem.implementation, REFERENCE, {}
    if asked != REFERENCE:
        runs = _name(table, choose(table, problem, operands, target))
    for name, module in table.items():
        why = module.unsupported(problem, operands, target)
        if name != runs:
            named = f"implementation={asked!r} was asked for" if asked else f"{runs} is faster"
            others[name] = why or named
    if runs != REFERENCE:
        others[REFERENCE] = "the specification: runs when it is asked for"
    choices.append(Choice(operation, runs, others))


def _name(table: Mapping[str, Candidate], module: Candidate) -> str:
    return next(name for name, known in table.items() if known is module)


def record_newton(operation: str, table: Mapping[str, Any], how: str, solved: Any) -> None:
    """The same for an operation that runs by Newton's method."""
    if (recorder := _recorder.get()) is not None:
        others = dict.fromkeys((*table, REFERENCE), f"implementation={NEWTON!r} was asked for")
        recorder[1].append(Choice(operation, NEWTON, others, how, solved))


def only_reference(operation: str, why: str, name: str | None) -> None:
    """``operation`` runs as its reference, for a reason that holds for all implementations.

    Raises:
      ValueError: ``name`` is another one, which was asked for.
    """
    if name not in (None, REFERENCE):
        raise ValueError(f"implementation={name!r} cannot run this: {why}")
    record_reference(operation, why)


def record_reference(operation: str, why: str) -> None:
    """The same for an operation that has no implementation but its reference."""
    if (recorder := _recorder.get()) is not None:
        others = {name: why for name in NAMES if name != REFERENCE}
        recorder[1].append(Choice(operation, REFERENCE, others))
