# `make demo` and `make test` each work alone on a fresh machine with Python >= 3.11, make and a C compiler.
# Both install into .venv once and reuse it until pyproject.toml or constraints.txt change.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: setup demo test lint types docs check clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Petalite needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (once; torch is large)"
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/petalite demo --resume --out runs/demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/test_structure.py

types: $(INSTALLED)
	$(BIN)/mypy

.venv/.installed-docs: $(INSTALLED)
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --clean
	@! grep -rnoE '<(script|img|iframe|source)[^>]* src="(https?:)?//[^"]*|<link[^>]* (rel="(stylesheet|preconnect|preload|icon)"[^>]* )href="(https?:)?//[^"]*' site --include='*.html' || { echo "the site loads something from elsewhere" >&2; exit 1; }

check: lint types test

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
