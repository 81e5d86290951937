"""Results on disk: one JSON file a run, whole at any time."""

import argparse
import datetime
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"  # which docs/ quotes
RUNS = Path(__file__).parents[1] / "runs"  # which Git ignores


def add_folder(parser, usual=None):
    """Adds the options that say where a command writes: ``out``, the folder.

    Args:
      parser: of the command, an ``argparse.ArgumentParser``.
      usual: the folder where neither option is given; None for ``RUNS``.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--out", metavar="DIRECTORY", type=Path, default=Path(usual or RUNS), help="of the results"
    )
    group.add_argument(
        "--record",
        dest="out",
        action="store_const",
        const=RESULTS,
        default=argparse.SUPPRESS,
        help="write into benchmarks/results, which the docs quote: for a commit",
    )


def begun(benchmark, about, notes, chosen):
    """What a command's file begins with, taken when it begins: its rows come after it.

    Args:
      benchmark: the command's name.
      about: the machine, from ``machine.describe``.
      notes: what the fields of a row mean.
      chosen: the options, of which those that are paths are left out.
    """
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": about,
        "options": {k: v for k, v in vars(chosen).items() if not isinstance(v, Path)},
        "notes": notes,
    }


def load(path) -> dict[str, Any]:
    """The content of a file, or {} where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def before(path, options):
    """The content of a file that a run with the same options left when it stopped, or {}.

    Raises:
      SystemExit: the file is of other options.
    """
    content = load(path)
    if content and content["options"] != options:
        raise SystemExit(
            f"{path} is of {content['options']}, not of {options}: remove it or take another --out"
        )
    return content


def save(path, content):
    """Writes ``content`` as JSON to ``path``: the old file or the new one, never a part of it."""

    def write(temporary):
        text = json.dumps(content, indent=1, allow_nan=False)
        # numbers in a line; a JSON string holds no line break, so none is touched
        text = re.sub(r"\[\n[\d\s.,e+-]+\]", lambda numbers: " ".join(numbers[0].split()), text)
        Path(temporary).write_text(text + "\n", encoding="utf-8")

    replace(path, write)


def replace(path, write):
    """Lets ``write(temporary)`` make a file and puts it in the place of ``path`` at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    try:
        write(temporary)
        os.chmod(temporary, 0o644)  # mkstemp's file is for its owner alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def append(path: Path, row: dict[str, Any]) -> None:
    """A line, which is on the disk when this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def slug(name):
    """A name as a part of a file's: NVIDIA H200 -> nvidia-h200."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
