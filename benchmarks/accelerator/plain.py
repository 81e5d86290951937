"""What ``display`` gives, as plain text, for a machine without rich."""

import contextlib
import re


class Console:
    """Prints texts and tables, without their colours."""

    def print(self, what="", *, markup=True, **style):
        print(_unmarked(str(what)) if markup else what, flush=True)


class Table:
    """Columns as wide as what is in them."""

    def __init__(self, title):
        self.title, self.columns, self.rows = title, [], []

    def add_column(self, name, justify="left", **style):
        self.columns.append((name, str.ljust if justify == "left" else str.rjust))

    def add_row(self, *cells):
        self.rows.append([_unmarked(cell) for cell in cells])

    def __str__(self):
        lines = [[name for name, _ in self.columns], *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines = [
            "  ".join(
                align(cell, width)
                for cell, width, (_, align) in zip(line, widths, self.columns, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *lines])


console, table = Console, Table


@contextlib.contextmanager
def progress(console, total):
    """A line for each row once it is done."""
    del total

    @contextlib.contextmanager
    def row(label):
        yield lambda text: console.print(f"{label}  {text}")

    yield row


def _unmarked(text):
    return re.sub(r"\[/?[a-z ]*\]", "", text)
