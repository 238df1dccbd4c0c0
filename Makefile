# Everything runs in a virtual environment of its own, .venv, which the first target makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help serve chat test check bench clean

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

serve: $(VENV)/.installed ## start a whole cluster on this machine and print its URL
	$(BIN)/moonshard up

chat: $(VENV)/.installed ## talk to the running cluster in the terminal
	$(BIN)/moonshard chat

test: $(VENV)/.tested ## run all tests
	$(BIN)/python -m pytest

check: $(VENV)/.tested ## lint and type-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.tested ## measure, and print one table
	$(BIN)/python -m tests.bench

clean: ## remove the virtual environment and all build products
	rm -rf $(VENV) protos/*_pb2* kernels/native/*.so

# Installing builds the protobuf modules and the CPU kernels, so their sources are prerequisites.
SOURCES := pyproject.toml $(wildcard protos/*.proto protos/build.py kernels/native/*.cpp kernels/native/*.h kernels/native/*.py)

$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[local]'
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[local,test]'
	touch $@
