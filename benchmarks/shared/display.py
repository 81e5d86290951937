"""What a run shows while it goes on, in a terminal and in a file."""

import contextlib
import sys

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


def table(title):
    """An empty table, as all benchmarks draw theirs."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )


def cost(compiling, memory):
    """Seconds and bytes in one column; a dash where nothing is compiled."""
    seconds = f"{compiling:.2f} s" if compiling else "-"
    return seconds + ("" if memory is None else f" {memory / 2**20:7.1f} MiB")


def console():
    """Standard output; a file or a pipe gets lines of 120 columns."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@contextlib.contextmanager
def progress(console, total):
    """A bar over ``total`` rows at the bottom of the terminal.

    Gives a function ``row(label)``, a context manager for the work on one row; it gives a
    function that says, in one line, what came of it. The lines stay, and are all there is where
    the output is no terminal.

    >>> with progress(console, 2) as row:
    ...     for label in "ab":
    ...         with row(label) as done:
    ...             done("1.0 ms")
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total)

        @contextlib.contextmanager
        def row(label):
            bar.update(task, description=label)
            yield lambda text: console.print(f"{label}  {text}")
            bar.advance(task)

        yield row
