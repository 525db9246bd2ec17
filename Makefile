# Every target does its own set-up: a virtual environment in .venv with the pinned versions of constraints.txt.
#   make demo       simulate a sparse-view CT scan of a shipped slice, reconstruct it, write demo/report.html
#   make test       the test suite
#   make verify     the operators against an independent library (adds about 400 MB to .venv)
#   make check      lint, format, types, import time, README table, documentation, wheel
#   make bench      every benchmark protocol; appends to benchmarks/results/
#   make viewer     the page of `scanfield view`, into the package (needs Node 20 or newer)
#   make docs       the documentation site, in site/
#   make gpu-check  tests and benchmarks on a CUDA device
#   make clean      everything made from here, the environment too

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# The C++ kernels are built with the package.
NATIVE := $(wildcard src/scanfield/kernels/native/*) tools/build_kernels.py
# One thread per test process: many small tensor operations are slower on several.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SCANFIELD := $(BIN)/scanfield
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.PHONY: demo test verify check bench viewer docs gpu-check clean

demo: .venv/.installed
	$(SCANFIELD) demo -o demo

test: .venv/.installed-test
	$(PYTEST) -n 2

verify: .venv/.installed-verify
	$(PYTEST) -m "verify or triton"

check: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/import_gate.py
	$(BIN)/python tools/readme_methods.py --check
	$(MKDOCS) build --strict --quiet
	$(BIN)/python tools/wheel_smoke.py

bench: .venv/.installed-bench
	$(SCANFIELD) bench run all --append benchmarks/results

viewer: src/scanfield/view/static/index.html

src/scanfield/view/static/index.html: $(wildcard viewer/*.* viewer/src/*)
	cd viewer && npm ci --no-audit --no-fund --loglevel=error && npm run --silent build

docs: .venv/.installed-dev
	$(MKDOCS) build --strict

gpu-check: .venv/.installed-test
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(PYTEST) -m "gpu or triton" && $(SCANFIELD) bench run kernels --device cuda --append benchmarks/results \
		&& $(SCANFIELD) bench run all --device cuda; \
	else \
		echo 'gpu-check: skipped, torch finds no CUDA device on this machine'; \
	fi

clean:
	rm -rf .venv build dist demo site viewer/node_modules src/scanfield/view/static .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools docs -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'scanfield needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 ...' >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(INSTALL) --upgrade pip
	touch $@

.venv/.installed: .venv/.python pyproject.toml constraints.txt $(NATIVE)
	@echo 'Installing scanfield and its dependencies into .venv (a few minutes, once)'
	$(INSTALL) -e .
	touch $@

.venv/.installed-test: .venv/.python pyproject.toml constraints.txt $(NATIVE)
	@echo 'Installing scanfield and its test tools into .venv (a few minutes, once)'
	$(INSTALL) -e '.[test]'
	touch $@ .venv/.installed

.venv/.installed-bench: .venv/.installed
	@echo 'Installing the rivals of the benchmarks into .venv (once)'
	$(INSTALL) -e '.[rivals]'
	touch $@

.venv/.installed-verify: .venv/.installed-test
	$(INSTALL) -e '.[test,verify]'
	touch $@

.venv/.installed-dev: .venv/.installed-test
	@echo 'Installing the documentation and development tools into .venv (once)'
	$(INSTALL) -e '.[test,docs,dev]'
	touch $@
