# The three commands of the README. Everything else is `python -m ...` inside .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test demo check

quickstart: .venv/installed
	$(BIN)/python -m training.run training/recipes/quickstart

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow"
	$(BIN)/python -m pytest -m slow

demo: .venv/installed
	MODEL_ID=runs/quickstart/release/model $(BIN)/python spaces_app/app.py

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]"
	touch $@
