# Two commands do everything on a fresh machine:
#   make bench   LSTM against GRU against attention on long sequences: table, chart, file
#   make test    the tests
# Each makes its own environment. ARGS are handed on; another Python: PYTHON=python3.12 VENV=.venv12

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: bench peers kernels test lint clean

bench: $(VENV)/installed-bench
	$(RUN) -m benchmarks $(ARGS)

peers: $(VENV)/installed-peers
	$(RUN) -m benchmarks peers $(ARGS)

kernels: $(VENV)/installed-aot
	$(RUN) -m benchmarks kernels $(ARGS)

test: $(VENV)/installed-test
	$(RUN) -m pytest -n auto $(ARGS)

lint: $(VENV)/installed-lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV)

# One environment, to which each target adds the extra it needs.
$(VENV)/installed-%: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable ".[$*]"
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
