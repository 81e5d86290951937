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


def test_sine_forecast(tmp_path):
    pytest.importorskip("matplotlib"), pytest.importorskip("optax"), pytest.importorskip("rich")
    picture = tmp_path / "sine.png"
    error, last = run("sine_forecast", "--out", str(picture))
    assert 0 < error < 2 and 0 < last < 2
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_char_lm(capsys):
    pytest.importorskip("flax"), pytest.importorskip("optax"), pytest.importorskip("rich")
    before, after = run("char_lm", "--hidden", "32")
    assert 7.5 < before < 8.5 and after < before
    assert "The following " in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_short(path):
    assert len(path.read_text().splitlines()) < 120
