"""Pictures of what is inside are drawn, of the right things in the right places."""

import importlib.util
import pathlib

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from jaxrnn import plot  # noqa: E402

RNG = np.random.default_rng(0)
FOUND = {"f": RNG.random((6, 4)), "c": RNG.normal(size=(6, 60))}


def png(figure, path):
    figure.savefig(path)
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000


def test_gates(tmp_path):
    figure = plot.gates(FOUND, "ab $\nc")
    gate, state = figure.axes[:2]
    assert [t.get_text() for t in state.get_xticklabels()] == ["a", "b", "␣", r"\$", "⏎", "c"]
    (image,), (other,) = gate.images, state.images
    assert image.get_clim() == (0, 1) and np.allclose(image.get_array(), FOUND["f"].T)
    low, high = other.get_clim()
    assert low == -high < 0 and other.get_array().shape == (48, 6)
    assert png(figure, tmp_path / "gates.png")


def test_gradient_flow(tmp_path):
    norms = {"one row": 0.5 ** np.arange(10.0)[::-1], "rows": RNG.random((10, 5, 2)) + 0.1}
    axes = plot.gradient_flow(norms)
    first, second = axes.lines
    assert axes.get_yscale() == "log" and second.get_ydata()[-1] == 1
    assert np.allclose(first.get_ydata(), 0.5 ** first.get_xdata())
    assert png(axes.figure, tmp_path / "flow.png")
    assert plot.gradient_flow(norms, axes=axes) is axes


BAD = {
    "a batch": (lambda: plot.gates({"f": np.ones((6, 2, 4))}), r"found: got \{'f': \(6, 2, 4"),
    "nothing": (lambda: plot.gates({}), "found: got {}, want"),
    "labels": (lambda: plot.gates(FOUND, "abc"), "labels: got 3, want one for each of T = 6"),
    "no norms": (lambda: plot.gradient_flow({}), "norms: got {}, want"),
    "no steps": (lambda: plot.gradient_flow({"a": np.ones((0, 2))}), r"norms: got \{'a': \(0, 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_is_wrong(name):
    call, text = BAD[name]
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.usefixtures("plain_jax")
def test_the_example(tmp_path, capsys):
    pytest.importorskip("optax"), pytest.importorskip("rich")
    path = pathlib.Path(__file__).parents[1] / "examples" / "look_inside.py"
    spec = importlib.util.spec_from_file_location("look_inside", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    bits, norms = module.main(["--steps", "5", "--hidden", "8", "--out-dir", str(tmp_path)])
    assert {"RNN", "GRU", "LSTM"} < set(norms) and bits < 7  # log2(128) before it learns
    for name in ("gates.png", "gradients.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert "forget gates below 0.1" in capsys.readouterr().out
