# The three commands of the README. Everything else is `python -m ...` inside .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: quickstart test test-long demo demo-browser check docs pdf

quickstart: .venv/installed
	$(BIN)/python -m training.run training/recipes/quickstart

test: .venv/installed-all
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not long"
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow --ignore-glob="tests/test_space*" --ignore-glob="tests/test_browser*"
	$(BIN)/python -m pytest -m slow tests/test_space*.py tests/test_browser*.py

test-long: .venv/installed-all
	$(BIN)/python -m pytest -m long

demo: .venv/installed
	MODEL_ID=runs/quickstart/release/model $(BIN)/python spaces_app/app.py

demo-browser: .venv/installed-browser
	$(BIN)/hf-scratch browser runs/quickstart

check: .venv/installed-all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without the programs for exports, evaluation by others' tasks and data, which also slow down every start.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) ".[train,space]"
	touch $@

.venv/installed-browser: .venv/installed
	$(PIP) ".[browser]"
	touch $@

.venv/installed-all: .venv/installed
	$(PIP) ".[all]"
	touch $@

docs: .venv/installed-docs
	rm -rf build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/docs/read docs build/docs/html

pdf: docs
	$(BIN)/python -m sphinx -q -W --keep-going -b singlehtml -t pdf -d build/docs/read-paper docs build/docs/paper
	$(BIN)/python -m docs.pdf build/docs/paper/index.html build/docs/guide.pdf

.venv/installed-docs: .venv/installed
	$(PIP) ".[docs]"
	touch $@
