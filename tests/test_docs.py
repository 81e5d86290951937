"""Every example in a docstring, in the README and in docs/ runs, and says what comes out."""

import doctest
import importlib
import json
import pathlib
import pkgutil
import re

import jax
import jax.numpy as jnp
import pytest

import jaxrnn

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
MODULES = sorted(m.name for m in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn."))
NAMES = {"jax": jax, "jnp": jnp, "jaxrnn": jaxrnn}
PUBLIC = [name for name in dir(jaxrnn) if not name.startswith("_")]
FLAX = ("jaxrnn.nnx", "jaxrnn.linen")


@pytest.mark.parametrize("module", ["jaxrnn", *MODULES])
def test_docstrings(module):
    if module in FLAX:
        pytest.importorskip("flax")
    result = doctest.testmod(importlib.import_module(module), extraglobs=NAMES)
    assert result.failed == 0


@pytest.mark.parametrize("name", [n for n in PUBLIC if callable(getattr(jaxrnn, n))])
def test_public_names_have_an_example(name):
    assert ">>>" in (getattr(jaxrnn, name).__doc__ or ""), f"jaxrnn.{name} has no example"


@pytest.mark.parametrize("benchmark", ["sequences-cpu", "peers-cpu"])
def test_the_words_of_a_result_are_quoted(benchmark):
    """What docs/ says of a benchmark is what its command said of the result that is kept."""
    result = json.loads((ROOT / "benchmarks" / "results" / f"{benchmark}.json").read_text())
    page = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())
    for sentence in result["words"]:
        assert sentence in page, sentence


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
