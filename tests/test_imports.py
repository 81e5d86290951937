"""What imports what: one way only, and only JAX, and NumPy which JAX needs, from outside."""

import ast
import functools
import graphlib
import pathlib
import subprocess
import sys
import tomllib

import pytest

import jaxrnn

ROOT = pathlib.Path(jaxrnn.__file__).parent
ROOMS = ("core", "ops", "builders", "wrappers", "cells", "inspect")  # of _src, from the bottom up
FLOORS = (  # a file imports from its own floor and from those before it
    *((f"_src/{room}/",) for room in ROOMS),
    ("inside.py", "nnx.py", "linen.py", "equinox.py", "plot.py"),
    ("interop/",),
    ("__init__.py", "_src/__init__.py"),
    ("files.py",),
)
OUTSIDE = {  # beside JAX
    "_src/core/cell.py": {"wadler_lindig"},  # which alone calls what imports it
    "nnx.py": {"flax"},
    "linen.py": {"flax"},
    "plot.py": {"matplotlib"},
    "files.py": {"safetensors"},
    "interop/": {"flax", "equinox", "torch", "keras", "onnx"},
}
SHARED = ("_src/core/", "_src/ops/gpu/", "_src/ops/native.py")
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))


def floor(file):
    [found] = [n for n, places in enumerate(FLOORS) if file.startswith(places)]
    return found


@functools.cache
def imports(file):
    """Names of modules, or of what is in them, as lists of their parts."""
    found = []
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found += [name.name.split(".") for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import relative to the file"
            found += [[*node.module.split("."), name.name] for name in node.names]
    return found


def own(file):
    """The files of jaxrnn that a file imports."""
    for package, *names in imports(file):
        if package == "jaxrnn":
            yield next(
                path
                for n in range(len(names), -1, -1)
                for path in ("/".join(names[:n]) + ".py", "/".join([*names[:n], "__init__.py"]))
                if path in FILES
            )


@pytest.mark.parametrize("file", FILES)
def test_imports_go_one_way(file):
    for other in own(file):
        assert floor(other) <= floor(file), f"{file} imports {other}"
    outside = {"jax", "numpy", "jaxrnn"} | sys.stdlib_module_names
    for place, packages in OUTSIDE.items():
        if file.startswith(place):
            outside |= packages
    assert {package for package, *_ in imports(file)} <= outside


def test_no_circle():
    graphlib.TopologicalSorter({file: set(own(file)) - {file} for file in FILES}).prepare()


def test_operations_know_no_cell():
    """Kernels are chosen, and cells are made, in rooms that don't meet but in operations."""
    kernels = ("/cpu", "/tpu/", "/gpu/", "/xla", "/cudnn", "/chunked")
    for file in FILES:
        if not file.startswith("_src/ops/"):
            assert not [o for o in own(file) if any(kernel in o for kernel in kernels)], file


def test_what_kernels_for_gpus_share_knows_no_operation():
    for file in FILES:
        if file.startswith("_src/ops/gpu/"):
            assert not [o for o in own(file) if not o.startswith(SHARED)], file


def test_jax_alone_is_loaded():
    program = """import sys, jax
loaded = lambda: {name.split(".")[0] for name in sys.modules}
before = loaded()
import jaxrnn, jaxrnn.interop
print(loaded() - before)"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "{'jaxrnn'}\n", run.stdout + run.stderr


def test_a_missing_package_names_its_extra():
    """Of those that pyproject.toml has."""
    needs = {"nnx": "flax", "linen": "flax", "files": "safetensors", "plot": "matplotlib"}
    needs |= {"equinox": "equinox"}
    program = f"""import importlib, sys
for module, package in {needs}.items():
    sys.modules[package] = None
    try:
        importlib.import_module(f"jaxrnn.{{module}}")
    except ModuleNotFoundError as error:
        print(error)"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    names = {"flax": "flax", "safetensors": "files", "matplotlib": "plot", "equinox": "equinox"}
    assert run.stdout.splitlines() == [
        f"jaxrnn.{module} needs {package}, which is not installed:"
        f' pip install "jaxrnn[{names[package]}]"'
        for module, package in needs.items()
    ], run.stderr
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    for package, name in names.items():
        assert any(r.startswith(package) for r in project["optional-dependencies"][name])


def test_public_names_alone_show():
    """As tab completion shows them; modules that need an extra show once they are imported."""
    program = """import jaxrnn
shown = {name for name in dir(jaxrnn) if not name.startswith("_")}
print(sorted(shown ^ set(jaxrnn.__all__)))"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stdout + run.stderr


def test_public_names_say_so():
    for name in set(jaxrnn.__all__) - {"inside", "INPUTS"}:
        assert getattr(jaxrnn, name).__module__ == "jaxrnn", name
