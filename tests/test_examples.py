"""The examples run, and learn something already in a few steps."""

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys

import cases
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
# What a user would see: JAX's own defaults.
pytestmark = pytest.mark.usefixtures("plain_jax")


@functools.cache
def module(name):
    """An example, loaded once: what it compiled stays."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def run(name, *arguments):
    return module(name).main(["--steps", "5", *arguments])


def test_char_lm(capsys):
    pytest.importorskip("flax"), pytest.importorskip("optax"), pytest.importorskip("rich")
    bits, ngrams = run("char_lm", "--hidden", "32")
    assert 1.8 < ngrams < 2.2 < bits < 8
    assert "The following " in capsys.readouterr().out


def test_memories(tmp_path, monkeypatch, capsys):
    """A second run takes what the first one has found."""
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    example, picture = module("memories"), tmp_path / "memories.png"
    small = dict(WIDTH=16, LAYERS=1, BATCH=1, LENGTH=8, PLACES=[1, 2, 4], STREAMS=(16,))
    small |= dict(SIZES=dict(attention=16), FILES=example.FILES[:20])
    for name, value in small.items():
        monkeypatch.setattr(example, name, value)
    first, packed = run("memories", "--out", str(picture))
    again, _ = run("memories", "--memories", "attention", "--out", str(picture))
    (row,) = again.values()
    assert row["speed"] == first["attention"]["speed"] > 0 and 1 < packed < 3
    assert 5 < row["bits"] < 9 and len(row["places"]) == 3
    # Two caches of 16 steps and their count, beside the last 3 inputs of the convolution.
    assert row["decoding"][0][0] == 4 * (2 * 16 * 16 + 1 + 3 * 16)
    said = capsys.readouterr().out
    assert "attention, " in said and "40 tokens each; xz: " in said
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_resume(tmp_path):
    pytest.importorskip("optax"), pytest.importorskip("orbax"), pytest.importorskip("rich")
    options = "--hidden", "32", "--every", "2", "--directory", str(tmp_path)
    first, alone, digest = run("resume", *options)
    assert 4 < alone < 5 and 7 < first < 8
    assert run("resume", *options) == (first, alone, digest)  # its last step made again


def test_distributed(tmp_path):
    """Some processes, one of which is killed; then this one, with other devices, goes on."""
    pytest.importorskip("optax"), pytest.importorskip("orbax")
    common = "--steps", "8", "--every", "2", "--hidden", "16", "--directory"
    processes = "4" if cases.CHOSEN == "all" else "2"  # each takes seconds to begin
    options = "--processes", processes, "--devices", "2", "--die-at", "5"
    command = sys.executable, EXAMPLES / "distributed.py", *options, *common, tmp_path / "job"
    environment = dict(os.environ, XLA_FLAGS="", PYTHONPATH=str(EXAMPLES.parent))
    died = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert died.returncode == 1 and "a process has died: start the job again" in died.stderr
    main = module("distributed").main
    alone, after = (main([*common, str(tmp_path / name)]) for name in ("alone", "job"))
    first = min(after)
    assert first in (3, 5) and alone[8] < alone[1]
    for number in range(first, 9):
        assert abs(after[number] - alone[number]) < 1e-5


def test_adding_problem(tmp_path):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    picture = tmp_path / "adding.png"
    found = run("adding_problem", "--cells", "gru", "--length", "10", "--out", str(picture))
    steps, error = found["gru"]
    assert steps is None and 0 < error < 2
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("task", "cells"), (("parity", ("lstm", "delta_net_negative")), ("cycle", ("elman",)))
)
def test_state_tracking(tmp_path, monkeypatch, task, cells):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    picture = tmp_path / "tracking.png"
    for size, value in {"BATCH": 8, "CHUNK": 5, "HELD_OUT": 32}.items():
        monkeypatch.setattr(module("state_tracking"), size, value)
    found = run(
        "state_tracking",
        "--task",
        task,
        "--cells",
        *cells,
        "--hidden",
        "8",
        "--out",
        str(picture),
    )
    assert tuple(found) == cells
    assert all(0 <= share <= 1 for shares in found.values() for share in shares.values())
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


@pytest.mark.parametrize("task", ("copying", "induction"))
def test_recall(tmp_path, task):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    picture = tmp_path / "recall.png"
    found = run(
        "recall",
        "--task",
        task,
        "--cells",
        "min_gru",
        "--length",
        "32",
        "--width",
        "8",
        "--layers",
        "1",
        "--out",
        str(picture),
    )
    assert 0 <= found["min_gru"] < 0.5
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_short(path):
    assert len(path.read_text().splitlines()) < 120


def test_transliteration(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    picture = tmp_path / "transliteration.png"
    monkeypatch.setattr(module("transliteration"), "WORDS", 500)
    right, by_letter = run("transliteration", "--out", str(picture))
    assert 0 <= right < 0.5 < by_letter < 0.6
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5_000


def test_ctc_labelling(tmp_path):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    pytest.importorskip("sklearn")
    picture = tmp_path / "ctc.png"
    error, apart = run("ctc_labelling", "--out", str(picture))
    assert 0.5 < error < 1.5 and 0.2 < apart < 0.6
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5_000


def test_stream():
    pytest.importorskip("optax")
    found = run("stream")
    assert list(found) == ["online", "its step alone"]
    assert all(0.3 < share < 0.7 for share in found.values())


def test_episodes(tmp_path):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    picture = tmp_path / "episodes.png"
    found = run("episodes", "--out", str(picture))
    assert list(found) == ["GRU", "no memory", "at random"]
    assert all(0.3 < share < 0.7 for share in found.values())
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5_000


@pytest.mark.parametrize(
    ("name", "needs"),
    (
        ("text_classification", "sklearn"),
        ("binary_classification", "sktime"),
        ("speaker_recognition", "sktime"),
        ("forecasting", "vega_datasets"),
    ),
)
def test_beside_a_baseline(name, needs, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    pytest.importorskip("flax"), pytest.importorskip("sklearn"), pytest.importorskip(needs)
    picture = tmp_path / "picture.png"
    if name == "text_classification":
        monkeypatch.setattr(module(name), "FILES", module(name).FILES[:120])
    (score,), baseline = run(name, "--seeds", "0", "--out", str(picture))
    assert 0.1 < score < 2 and 0.5 < baseline < 1.5
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5_000
