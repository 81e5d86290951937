"""Every example in a docstring, in the README and in docs/ runs; every link leads somewhere."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import jaxrnn
from benchmarks import quotes
from benchmarks.shared import record
from jaxrnn import interop

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
OTHERS = ("README.md", "CONTRIBUTING.md", "examples/README.md")
PAGES = sorted([*(ROOT / name for name in OTHERS), *DOCS.rglob("*.md")])
MODULES = sorted(m.name for m in pkgutil.walk_packages(jaxrnn.__path__, "jaxrnn."))
NAMES = {"jax": jax, "jnp": jnp, "jaxrnn": jaxrnn}
PUBLIC = [name for name in dir(jaxrnn) if not name.startswith("_")]
NEEDS = {  # beside JAX, to run the examples of a module, or of a function of jaxrnn.interop
    "jaxrnn.nnx": "flax",
    "jaxrnn.linen": "flax",
    "jaxrnn.equinox": "equinox",
    "jaxrnn.files": "safetensors",
    "jaxrnn.plot": "matplotlib",
    "from_flax": "flax",
    "to_linen": "flax",
    "to_nnx": "flax",
    "from_equinox": "equinox",
    "to_equinox": "equinox",
    "from_haiku": "haiku",
    "to_haiku": "haiku",
    "from_torch": "torch",
    "to_torch": "torch",
    "from_keras": "keras",
    "to_keras": "keras",
    "from_onnx": "onnx",
    "to_onnx": "onnx",
}
EXTRAS = (
    "equinox",
    "flax",
    "keras",
    "matplotlib",
    "optax",
    "orbax",
    "safetensors",
    "torch",
)  # of which a page's blocks may need some
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@pytest.mark.parametrize("module", ["jaxrnn", *MODULES])
def test_docstrings(module):
    pytest.importorskip(NEEDS.get(module, "jax"))
    found = importlib.import_module(module)
    others = interop.__all__ if found is interop else ()
    run_examples(
        *(test for test in FINDER.find(found) if test.name.rpartition(".")[2] not in others)
    )


@pytest.mark.parametrize("name", interop.__all__)
def test_docstrings_of_interop(name, request):
    """One by one: each needs its own library."""
    needs = NEEDS.get(name, "jax")
    pytest.importorskip(needs)
    if needs == "keras":
        request.getfixturevalue("plain_jax")  # Keras mixes types and ranks
    run_examples(*FINDER.find(getattr(interop, name), name))


FINDER = doctest.DocTestFinder(exclude_empty=True)


def run_examples(*tests):
    """Fails if an example gives something else than it says; what it gave is printed."""
    runner = doctest.DocTestRunner()
    for test in tests:
        test.globs |= NAMES
        runner.run(test)
    assert runner.summarize().failed == 0


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
    pages = [page.read_text() for page in quotes.PAGES]
    assert pages == list(map(quotes.quoted, pages)), "run python -m benchmarks quotes"
    marked = {name for page in pages for _, _, name, _ in quotes.MARKED.findall(page)}
    assert sorted(marked) == sorted(path.stem for path in record.RESULTS.glob("*.json"))


def test_a_quote_takes_the_place_of_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    monkeypatch.setattr(quotes, "PAGES", (path,))
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    long = ["long"] * 30
    record.save(tmp_path / "it.json", {"words": ["It is fast.", " ".join(long)]})
    page = "Before\n<!-- the words of it -->\n{}<!-- -->\nafter\n"
    path.write_text(page.format("- It was slow.\n"))
    assert quotes.main([]) == 0
    wrapped = f"- {' '.join(long[:19])}\n  {' '.join(long[19:])}\n"
    assert path.read_text() == page.format(f"- It is fast.\n{wrapped}")


@every_page
@pytest.mark.usefixtures("plain_jax")
def test_pages(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, as its reader would type them."""
    monkeypatch.chdir(tmp_path)  # where some of them write
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    for extra in EXTRAS:
        if any(extra in block for block in blocks):
            pytest.importorskip(extra)
    names = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)  # noqa: S102


@every_page
def test_every_block_of_code_says_its_language(page):
    """So that none is left out of the tests for being called otherwise."""
    fences = re.findall(r"^ *```(.*)$", page.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= {"math", "python", "sh"} and set(fences[1::2]) <= {""}


def test_every_example_is_listed():
    listed = re.findall(r"\]\((\w+\.py)\)", (ROOT / "examples" / "README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@every_page
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if "://" not in target:
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(path), f"{page.name}: {target}#{anchor}"


def anchors(page):
    """Those of a page's headings, as GitHub and MkDocs both make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"[-\s]+", "-", word) for word in words}


# The site


def test_the_site_has_every_page():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))


def test_the_reference_has_every_public_name():
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    told = re.findall(r"^::: jaxrnn\.(\w+)$", pages, re.MULTILINE)
    assert sorted(told) == sorted(n for n in PUBLIC if callable(getattr(jaxrnn, n)))


def test_the_site_is_built(tmp_path):
    """Without a warning, and such that reading it fetches nothing from elsewhere."""
    for package in ("mkdocs", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(package, reason="the site needs jaxrnn[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in DOCS.rglob("*.md"):
        html = (tmp_path / page.relative_to(DOCS).with_suffix(".html")).read_text()
        assert not re.search(r'<(?:script|img|link)[^>]*(?:src|href)="(?:https?:)?//', html)
    first = (tmp_path / "reference" / "cells.html").read_text()
    assert "jaxrnn.lstm" in first and "&gt;&gt;&gt;" in first
    assert (tmp_path / "benchmarks" / "results" / "cells-cpu.json").exists()
    cells = (tmp_path / "cells.html").read_text()
    assert cells.count("<math ") == (DOCS / "cells.md").read_text().count("```math")
    assert f"jaxrnn {jaxrnn.__version__}</title>" in cells
    assert (tmp_path / "search" / "search_index.js").exists()  # read where there is no server
