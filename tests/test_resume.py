"""Training killed at any moment, also while a checkpoint is written, ends with the same bits."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("orbax.checkpoint"), pytest.importorskip("optax"), pytest.importorskip("rich")

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "resume.py"
STEPS, EVERY = 200, 5
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill")


@pytest.fixture
def train():
    """Starts the example; none outlives the test."""
    started = []

    def start(directory, every):
        program = [sys.executable, EXAMPLE, "--directory", directory, "--every", every]
        program += ["--steps", STEPS, "--hidden", 4]
        started.append(
            subprocess.Popen(list(map(str, program)), stdout=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        with process:  # which closes its output
            process.kill()


def result(process):
    """The step that a run went on from, and the digest it ends with."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    words = out.split()
    return int(words[words.index("step") + 1].strip(";")), words[-1]


def whole(directory):
    """The latest checkpoint that has its name, 0 if there is none."""
    found = directory.iterdir() if directory.exists() else ()
    return max((int(path.name) for path in found if path.name.isdigit()), default=0)


def unfinished(directory):
    found = directory.iterdir() if directory.exists() else ()
    return {path.name for path in found if "orbax-checkpoint-tmp" in path.name}


def wait_until_whole(number, process, directory):
    wait_until(lambda: whole(directory) >= number, process)


def wait_until(true, process):
    end = time.monotonic() + 300
    while not true():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.001)


def stop_within_a_write(process, directory, before, rng):
    """Stops the process so that a checkpoint is there which it has begun to write, and no more."""
    new = lambda: unfinished(directory) - before
    while True:
        wait_until(new, process)
        time.sleep(rng.random() * 0.03)  # to be at any place in it
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        if new():
            return
        process.send_signal(signal.SIGCONT)


def test_killed_and_started_again(tmp_path, train):
    seed = random.randrange(2**32)
    print(f"{seed=}")
    rng, directory = random.Random(seed), tmp_path / "killed"
    undisturbed = train(tmp_path / "undisturbed", STEPS)
    for within in (False, True, False, True):
        first, before = whole(directory), unfinished(directory)
        process = train(directory, EVERY)
        wait_until_whole(first + EVERY * rng.randint(1, 3), process, directory)
        if within:
            stop_within_a_write(process, directory, before, rng)
        else:
            time.sleep(rng.random() * 0.1)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        print(f"killed after {whole(directory)}, unfinished: {unfinished(directory) - before}")
    latest = whole(directory)
    assert latest >= 4 * EVERY
    assert result(train(directory, EVERY)) == (latest, result(undisturbed)[1])
