"""The examples run, and learn something already in a few steps."""

import importlib.util
import pathlib

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
# What a user would see: JAX's own defaults.
pytestmark = pytest.mark.usefixtures("plain_jax")


def run(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(["--steps", "5", *arguments])


def test_char_lm(capsys):
    pytest.importorskip("flax"), pytest.importorskip("optax"), pytest.importorskip("rich")
    bits, ngrams = run("char_lm", "--hidden", "32")
    assert 1.8 < ngrams < 2.2 < bits < 8
    assert "The following " in capsys.readouterr().out


def test_resume(tmp_path):
    pytest.importorskip("optax"), pytest.importorskip("orbax"), pytest.importorskip("rich")
    options = "--hidden", "32", "--every", "2", "--directory", str(tmp_path)
    first, alone, digest = run("resume", *options)
    assert 4 < alone < 5 and 7 < first < 8
    assert run("resume", *options) == (first, alone, digest)  # its last step made again


def test_adding_problem(tmp_path):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    picture = tmp_path / "adding.png"
    found = run("adding_problem", "--cells", "gru", "--length", "10", "--out", str(picture))
    steps, error = found["gru"]
    assert steps is None and 0 < error < 2
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


@pytest.mark.parametrize("task", ("parity", "cycle"))
def test_state_tracking(tmp_path, task):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    picture = tmp_path / "tracking.png"
    found = run(
        "state_tracking", "--task", task, "--cells", "lstm", "lru", "--hidden", "8",
        "--out", str(picture),
    )  # fmt: skip
    assert set(found) == {"lstm", "lru"}
    assert all(0 <= share <= 1 for shares in found.values() for share in shares.values())
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


@pytest.mark.parametrize("task", ("copying", "induction"))
def test_recall(tmp_path, task):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    picture = tmp_path / "recall.png"
    found = run(
        "recall", "--task", task, "--cells", "min_gru", "--length", "32", "--width", "8",
        "--layers", "1", "--out", str(picture),
    )  # fmt: skip
    assert 0 <= found["min_gru"] < 0.5
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_short(path):
    assert len(path.read_text().splitlines()) < 120


def test_transliteration(tmp_path):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    picture = tmp_path / "transliteration.png"
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
def test_beside_a_baseline(name, needs, tmp_path):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    pytest.importorskip("flax"), pytest.importorskip("sklearn"), pytest.importorskip(needs)
    picture = tmp_path / "picture.png"
    (score,), baseline = run(name, "--seeds", "0", "--out", str(picture))
    assert 0.1 < score < 2 and 0.5 < baseline < 1.5
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5_000
