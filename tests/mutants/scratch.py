"""A copy of a checkout, in which faults are planted, one at a time, and tests are run."""

import contextlib
import hashlib
import importlib.metadata
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

# The library is imported from the copy, whatever an editable installation says.
SITE = """
import pathlib
import sys

here = pathlib.Path(__file__).parent
for finder in list(sys.meta_path):
    spec = finder.find_spec("jaxrnn", None) if hasattr(finder, "find_spec") else None
    if spec is not None and here not in pathlib.Path(spec.origin).parents:
        sys.meta_path.remove(finder)
"""
# One instruction set, without most optimisations: it is built anew for each fault.
CMAKE = "-DCMAKE_BUILD_TYPE=", "-DJAXRNN_FLAGS=-O1", "-DJAXRNN_BASELINE_ALONE=ON"
NOTICED = ("red", "crash", "import", "timeout")


class Outcome(NamedTuple):
    """What came of some tests.

    Attributes:
      result: "green"; "red", a test failed; "crash", the process ended otherwise; "import", tests
        could not be collected; "timeout"; "broken", nothing was tried.
      seconds: for all.
      by: the first test that failed, and how; or what was wrong.
    """

    result: str
    seconds: float
    by: str = ""


class Scratch:
    """The copy.

    Args:
      root: an empty folder for it.
      checkout: what is copied.
      suite: the checkout that the tests, and pytest's options, are taken from.
    """

    def __init__(self, root, checkout, suite):
        self.root = root = Path(root)
        tests = "tests", "pyproject.toml"
        taken = [(checkout, name) for name in _files(checkout) if not name.startswith(tests)]
        taken += [(suite, name) for name in _files(suite, *tests)]
        for source, name in taken:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(source, name), root / name)
        (root / "sitecustomize.py").write_text(SITE)
        self.names = sorted(name for _, name in taken)
        self._library = None
        self._kernel = root / "build" / "kernel"

    def present(self, line):
        """A command line of pytest as words, without the files that the suite has not."""
        words = shlex.split(line)
        files = [word for word in words if word.startswith("tests/")]
        gone = [name for name in files if not (self.root / name.partition("::")[0]).exists()]
        return [word for word in words if word not in gone] if len(gone) < len(files) else []

    def key(self, line, fault=None):
        """A digest of what a run depends on: sources, tests and what they import, versions."""
        words = self.present(line)
        digest = hashlib.sha256(repr((words, fault and fault[:4], sys.version)).encode())
        for package in ("jax", "jaxlib"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                digest.update(importlib.metadata.version(package).encode())
        tests = self._imported(words)
        for name in self.names:
            test = name.startswith("tests/test_")
            helper = name.startswith("tests/") and not name.startswith("tests/mutants/")
            if name in tests or (helper and not test) or name.startswith(("jaxrnn/", "native/")):
                digest.update(name.encode() + (self.root / name).read_bytes())
        return digest.hexdigest()[:16]

    def _imported(self, words):
        """The files of tests among some words, and those that they import."""
        left, found = (
            {word.partition("::")[0] for word in words if word.startswith("tests/")},
            set(),
        )
        while left:
            name = left.pop()
            found.add(name)
            text = (self.root / name).read_text()
            others = re.findall(r"^(?:from|import) (test_\w+)", text, re.MULTILINE)
            left |= {f"tests/{other}.py" for other in others} - found
        return found

    def check(self):
        """Raises an error if the tests would import the library from elsewhere."""
        command = [sys.executable, "-c", "import jaxrnn; print(jaxrnn.__file__)"]
        run = subprocess.run(
            command, cwd=self.root, env=self._environment(None), capture_output=True, text=True
        )
        if self.root.resolve() not in Path(run.stdout.strip()).resolve().parents:
            raise SystemExit(f"jaxrnn: got {run.stdout}{run.stderr}, want it of {self.root}")

    def run(self, line, limit, fault=None):
        """The outcome of tests.

        Args:
          line: a command line of pytest.
          limit: how many seconds it may take.
          fault: what is planted meanwhile.
        """
        begin = time.monotonic()
        outcome = self._run(self.present(line), begin + limit, fault)
        return outcome._replace(seconds=round(time.monotonic() - begin, 1))

    def _run(self, words, end, fault):
        if not words:
            return Outcome("broken", 0, "the suite has no such tests")
        if self._library is None and (self.root / "native").exists():
            failed = self._build()
            if failed:
                return failed
            self._library = shutil.copyfile(self._kernel / "cpu.so", self.root / "build/cpu.so")
        with self._planted(fault) if fault else contextlib.nullcontext():
            if not fault or not fault.path.startswith("native/"):
                return self._pytest(words, end, self._library)
            return self._build() or self._pytest(words, end, self._kernel / "cpu.so")

    @contextlib.contextmanager
    def _planted(self, fault):
        path = self.root / fault.path
        text = path.read_text()
        self._write(path, fault.planted(text))
        try:
            yield
        finally:
            self._write(path, text)

    def _write(self, path, text):
        path.write_text(text)
        # Bytecode is known by the second and the size of its source.
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)

    def _build(self):
        """Builds the kernel for CPUs; an outcome if it cannot be built."""
        cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        make = [cmake, "--build", self._kernel, "--target", "cpu"]
        begin = [cmake, "-S", self.root / "native", "-B", self._kernel, *CMAKE]
        begin += [f"-DPython_EXECUTABLE={sys.executable}"]
        load = [sys.executable, "-c", f"import ctypes; ctypes.CDLL('{self._kernel}/cpu.so')"]
        for command in (make, load) if self._kernel.exists() else (begin, make, load):
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
            if done.returncode:
                lines = (done.stdout + done.stderr).splitlines()
                why = next((line for line in lines if "rror" in line), "")
                return Outcome("broken", 0, f"not built: {why}")

    def _environment(self, library):
        kept = {name: value for name, value in os.environ.items() if "JAXRNN" not in name}
        own = {"PYTHONPATH": str(self.root), "COLUMNS": "300"}
        return kept | own | ({"JAXRNN_CPU_LIBRARY": str(library)} if library else {})

    def _pytest(self, words, end, library):
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", *words]
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self._environment(library),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(timeout=max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            return Outcome("timeout", 0, shlex.join(words))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                process.communicate()
        return _outcome(process.returncode, out)


def _outcome(code, out):
    """Of pytest's exit status and what it wrote."""
    lines = out.strip().splitlines()
    last = lines[-1] if lines else ""
    by = next((line for line in lines if line.startswith(("FAILED ", "ERROR "))), last)
    if code == 0:
        passed = re.search(r"\d+ passed", last)
        return Outcome("green", 0) if passed else Outcome("broken", 0, f"nothing ran: {last}")
    if "ImportError while loading conftest" in out or (
        code in (1, 2) and by.startswith("ERROR ") and "::" not in by.split(" - ")[0]
    ):
        return Outcome("import", 0, by)
    if code == 1:
        return Outcome("red", 0, by)
    if code in (4, 5):  # no such file; no such test
        return Outcome("broken", 0, by)
    return Outcome("crash", 0, f"exit status {code}: {by}")


def _files(checkout, *under):
    """The names of a checkout's files, but for those that Git ignores."""
    command = ["git", "-C", str(checkout), "ls-files", "-z", "--cached", "--others"]
    command += ["--exclude-standard", "--", *under]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({name for name in names if name and Path(checkout, name).is_file()})
