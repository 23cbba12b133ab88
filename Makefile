# The whole developer interface; CI calls the same targets.
#   make demo     set everything up and start the chat        make test    set up and run all tests
#   make check    lint, types, layers                         make demo-model   train the demo model
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check format demo-model

$(READY): pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/baichuan chat

test: $(READY)
	$(BIN)/pytest -n 2 --cov --cov-report=term

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo-model: $(READY)
	$(BIN)/pip install --quiet -e '.[demo]'
	$(BIN)/python demo/build.py
