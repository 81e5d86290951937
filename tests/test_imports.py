"""What imports what: one way only, and only JAX, and NumPy which JAX needs, from outside."""

import ast
import pathlib
import subprocess
import sys

import pytest

import jaxrnn

ROOT = pathlib.Path(jaxrnn.__file__).parent
LAYERS = (  # a module imports from the layers before its own; cells and kernels don't meet in one
    ("dtypes", "widened", "placement", "choice", "target", "mosaic", "rotary", "equations"),
    ("scan", "once", "operation", "closures", "draws"),
    ("pieces",),
    ("arguments", "affine", "normal"),
    ("parameters", "mappings"),
    ("cell", "recurrence", "attend", "linear", "loop", "window"),
    (
        "gated",
        "lifted",
        "stateless",
        "batch_major",
        "wrap",
        "matrix_memory",
        "delta_rule",
        "episodes",
    ),
    (
        "diagonal",
        "memory",
        "convolved",
        "spatial",
        "combine",
        "reparameterised",
        "learned",
        "initialized",
    ),
    ("regularise", "attentive", "truncated", "int8"),
    ("cells", "attention", "nnx", "linen", "trace", "inside", "plot"),
    ("interop",),
    ("__init__",),
    ("files",),
)
LAYER = {module: number for number, modules in enumerate(LAYERS) for module in modules}
OUTSIDE = {  # beside JAX
    "nnx": {"flax"},
    "linen": {"flax"},
    "plot": {"matplotlib"},
    "files": {"safetensors"},
    "interop": {"flax", "equinox", "torch", "keras", "onnx"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".") for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import relative to the file"
            yield from ([*node.module.split("."), name.name] for name in node.names)


@pytest.mark.parametrize("file", sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py")))
def test_imports_go_one_way(file):
    module = file.removesuffix(".py").split("/")[0]
    for package, *name in imports(ROOT / file):
        if package == "jaxrnn":
            name = name or ["__init__"]
            assert name[0] == module or LAYER[name[0]] < LAYER[module], f"{module} imports {name}"
        else:
            outside = {"jax", "numpy"} | OUTSIDE.get(module, set())
            assert package in outside | sys.stdlib_module_names


def test_jax_alone_is_loaded():
    program = """import sys, jax
loaded = lambda: {name.split(".")[0] for name in sys.modules}
before = loaded()
import jaxrnn, jaxrnn.interop
print(loaded() - before)"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "{'jaxrnn'}\n", run.stdout + run.stderr
