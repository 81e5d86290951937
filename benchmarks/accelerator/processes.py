"""Work in a process of its own: if it hangs or breaks its device's context, it alone is lost."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "benchmarks.accelerator")
ROOT = Path(__file__).parents[2]
SECONDS = 5.0  # for a process to end that has been killed; one that waits for a driver may not

# Seconds that a process may take for its next message.
DEADLINES = {"survey": 90.0, "check": 75.0, "compile": 150.0, "time": 40.0}


class Died(Exception):
    """Why a process gives nothing more."""


class Process:
    """Runs a piece of work, which gives messages: see ``work``.

    Args:
      work: what, for JSON.
    """

    def __init__(self, work: dict[str, Any], command: Sequence[str] = COMMAND):
        self._said = tempfile.TemporaryFile()  # noqa: SIM115, as long as the process
        self._process = subprocess.Popen(
            [*command, json.dumps(work)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def receive(self, seconds: float) -> Any:
        """The next message.

        Raises:
          Died: none came within so many seconds, or the process ended. It is ended then.
        """
        try:
            line = self._lines.get(timeout=max(seconds, 0))
        except queue.Empty:
            self.end()
            raise Died(f"nothing came within {seconds:.0f} seconds, so it was killed") from None
        if line is None:
            why = self._why()
            self.end()
            raise Died(why)
        return json.loads(line)

    def go_on(self) -> None:
        """Lets a process go on that has said that it is ready."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: `receive` says why
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """Kills it, and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            self._process.wait(SECONDS)
            self._reader.join(SECONDS)
            for pipe in (self._process.stdin, self._process.stdout, self._said):
                assert pipe is not None
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _why(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS)  # its last message was its end
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        status = self._process.poll()
        ended = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        return f"its process ended with {ended}" + (f": {said[-1]}" if said else "")


def in_turn(pool, group, processes, end, failed) -> Iterator[dict[str, Any]]:
    """The results of processes that are all ready before the first goes on."""

    def left(name):
        return min(end - time.monotonic(), DEADLINES[name])

    def ready(process):
        try:
            process.receive(left("compile"))
        except Died as died:
            return str(died)

    died = list(pool.map(ready, processes))
    for case, process, problem in zip(group, processes, died, strict=True):
        if problem is None:
            process.go_on()
            try:
                row = process.receive(left("time"))
            except Died as died:
                problem = str(died)
        if problem is not None:
            if time.monotonic() >= end:
                return
            row = failed(case, problem)
        process.end()
        yield row


_running: set[Process] = set()


def start(**work: Any) -> Process:
    """A process, which ``end_all`` ends too."""
    process = Process(work)
    _running.add(process)
    return process


def end_all() -> None:
    while _running:
        _running.pop().end()
