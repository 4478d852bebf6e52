# `make demo` and `make test` each suffice on a fresh machine with Python >= 3.11 and pip.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# -r fEs also says why a test was skipped.
PYTEST := $(BIN)/pytest -r fEs

.PHONY: demo test test-slow test-gpu lint clean

demo: $(INSTALLED)
	$(BIN)/vesuvius demo

test: $(INSTALLED)
	$(PYTEST)

test-slow: $(INSTALLED)
	$(PYTEST) -m 'slow and not gpu' || [ $$? -eq 5 ] # 5: no test is marked slow

test-gpu: $(INSTALLED)
	$(PYTEST) -m gpu

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info build

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev,codecs]'
	touch $@
