# Each target does all of its own set-up: a virtual environment in .venv, plain pip.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: setup demo test check docs bench model clean

setup: $(VENV)/ready

# torch and torchvision first and as a pair: their versions must match
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.14.1 torchvision==0.29.1
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: setup  ## train a small CLIP for five minutes and see what it and the default model recognise
	$(BIN)/python examples/demo.py

test: setup  ## every test, no oracle skipped
	$(BIN)/python -m pytest

check: setup  ## the quick gate: style, types, who imports whom, fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/python -m pytest -m "not slow" -x

docs: setup  ## regenerate what is generated: README tables, method pages, result pages
	$(BIN)/python -m emblema.report.docs

bench: setup  ## the side-by-side speed comparisons
	$(BIN)/python benchmarks/run.py

model: setup  ## train the default model again (about an hour on two cores)
	$(BIN)/pip install --quiet --editable '.[build]'
	$(BIN)/python recipes/default_model.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache runs
