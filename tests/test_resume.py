"""Training killed at any moment, also while a checkpoint is written, ends with the same bits."""

import importlib.util
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
STEPS, EVERY = 120, 5
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill")


def options_of(directory, every):
    options = ["--directory", directory, "--every", every, "--steps", STEPS, "--hidden", 4]
    return list(map(str, options))


@pytest.fixture
def train():
    """Starts the example; none outlives the test."""
    started = []

    def start(directory, every):
        program = [sys.executable, str(EXAMPLE), *options_of(directory, every)]
        started.append(subprocess.Popen(program, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        with process:  # which closes its output
            process.kill()


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


@pytest.fixture
def resume():
    """The example in this process, where its program compiles once for what is left of the test:
    the step that a run went on from, and all bits of what it ends with."""
    spec = importlib.util.spec_from_file_location("resume", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(directory, every, capsys):
        capsys.readouterr()
        *_, digest = module.main(options_of(directory, every))
        words = capsys.readouterr().out.split()
        return int(words[words.index("step") + 1].strip(";")), digest

    return run


def test_killed_and_started_again(tmp_path, train, resume, plain_jax, capsys):
    seed = random.randrange(2**32)
    told = [f"{seed=}"]
    rng, directory = random.Random(seed), tmp_path / "killed"
    for within in (False, True):
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
        told += [f"killed after {whole(directory)}, unfinished: {unfinished(directory) - before}"]
    latest = whole(directory)
    assert latest >= 2 * EVERY, told
    _, undisturbed = resume(tmp_path / "undisturbed", STEPS, capsys)
    assert resume(directory, EVERY, capsys) == (latest, undisturbed), told
