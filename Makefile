# `make` or `make help` lists the targets. Everything runs in a virtual environment of its own.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_OUTPUT ?= output/demo

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format types check tokenizer clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY) ## create or update .venv

# Made anew only when what it is made from changed.
$(READY): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY) ## data -> tokens -> pre-train -> fine-tune -> multi-view test, on two CPU cores
	$(BIN)/python tools/demo.py --output $(DEMO_OUTPUT)

test: $(READY) ## the default tests
	$(BIN)/python -m pytest -n auto

test-all: $(READY) ## all tests, the slow ones too (GPU tests run where there is one)
	$(BIN)/python -m pytest -n auto -m 'slow or not slow'

lint: $(READY) ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## put files into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## static types
	$(BIN)/mypy

check: lint types test ## all that must hold before a commit

clean: ## remove what was built and downloaded
	rm -rf $(VENV) build dist *.egg-info
