"""Every example in a docstring, in the README and in docs/ runs, and says what comes out."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import jax
import jax.numpy as jnp
import pytest

import jaxrnn
from benchmarks import quotes, record

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
MODULES = sorted(m.name for m in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn."))
NAMES = {"jax": jax, "jnp": jnp, "jaxrnn": jaxrnn}
PUBLIC = [name for name in dir(jaxrnn) if not name.startswith("_")]
NEEDS = {
    "jaxrnn.nnx": "flax",
    "jaxrnn.linen": "flax",
    "jaxrnn.interop.flax": "flax",
    "jaxrnn.interop.equinox": "equinox",
    "jaxrnn.interop.onnx.exported": "onnx",
    "jaxrnn.interop.onnx.imported": "onnx",
    "jaxrnn.interop.torch": "torch",
    "jaxrnn.interop.keras": "keras",
}


@pytest.mark.parametrize("module", ["jaxrnn", *MODULES])
def test_docstrings(module, request):
    if module in NEEDS:
        pytest.importorskip(NEEDS[module])
    if module == "jaxrnn.interop.keras":
        request.getfixturevalue("plain_jax")  # Keras mixes types and ranks
    result = doctest.testmod(importlib.import_module(module), extraglobs=NAMES)
    assert result.failed == 0


@pytest.mark.parametrize("name", [n for n in PUBLIC if callable(getattr(jaxrnn, n))])
def test_public_names_have_an_example(name):
    assert ">>>" in (getattr(jaxrnn, name).__doc__ or ""), f"jaxrnn.{name} has no example"


@pytest.mark.parametrize("page", ("README.md", "CHANGELOG.md"))
def test_public_names_are_told(page):
    known = re.findall(r"[\w.]+", (ROOT / page).read_text())
    known = {name.removeprefix("jaxrnn.") for name in known}
    names = [n for n in PUBLIC if callable(getattr(jaxrnn, n))]
    assert set(names) <= known


def test_the_words_of_every_result_are_quoted():
    """What docs/ says of a benchmark is what its command said of the result that is kept."""
    page = quotes.PAGE.read_text()
    assert page == quotes.quoted(page), "run python -m benchmarks quotes"
    marked = {name for _, _, name, _ in quotes.MARKED.findall(page)}
    assert sorted(marked) == sorted(path.stem for path in record.RESULTS.glob("*.json"))


def test_a_quote_takes_the_place_of_what_was_there(tmp_path, monkeypatch):
    monkeypatch.setattr(quotes, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    long = ["long"] * 30
    record.save(tmp_path / "it.json", {"words": ["It is fast.", " ".join(long)]})
    page = "Before\n<!-- the words of it -->\n{}<!-- -->\nafter\n"
    quotes.PAGE.write_text(page.format("- It was slow.\n"))
    assert quotes.main([]) == 0
    wrapped = f"- {' '.join(long[:19])}\n  {' '.join(long[19:])}\n"
    assert quotes.PAGE.read_text() == page.format(f"- It is fast.\n{wrapped}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
@pytest.mark.usefixtures("plain_jax")
def test_pages(page):
    """The blocks of a page run one after the other, as its reader would type them."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    if any("flax" in block or "optax" in block for block in blocks):
        pytest.importorskip("flax")
        pytest.importorskip("optax")
    names = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
