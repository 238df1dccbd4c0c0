# Everything runs in a virtual environment of its own, .venv, which the first target makes: Python 3.11 and pip suffice.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements.lock

# Bytecode is kept whatever the shell says: without it every process compiles our modules, and pytest every test, anew.
unexport PYTHONDONTWRITEBYTECODE

# Which worker runs which tests: tests/conftest.py. Clusters take longest, so their worker starts with them.
PARALLEL := --numprocesses logical --maxprocesses 8 --no-loadscope-reorder
# The quick tests wait as much as they compute, for connections and processes: three workers for two cores.
QUICK := --numprocesses $(shell $(PYTHON) -c 'import os; print(min(8, (os.cpu_count() or 1) * 3 // 2))') --no-loadscope-reorder

.PHONY: help serve chat quick test check coverage sanitize bench kind lock clean

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

serve: $(VENV)/.installed ## start a whole cluster on this machine and print its URL (ARGS="--experts 4 ...")
	$(BIN)/moonshard up $(ARGS)

chat: $(VENV)/.installed ## talk to the running cluster in the terminal
	$(BIN)/moonshard chat $(ARGS)

quick: $(VENV)/.tested ## run the tests for every edit, in less than three minutes on two cores
	$(BIN)/python -m pytest $(QUICK) -m "not slow" $(addprefix --ignore=tests/,cluster kind reference services/nano) $(ARGS)

test: $(VENV)/.tested ## run all tests (ARGS="-k chat")
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

check: $(VENV)/.tested ## lint and type-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

coverage: $(VENV)/.tested ## measure branch coverage with all tests, and fail where a package is below its floor
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage json --quiet
	$(BIN)/python -m tests.coverage_floors

sanitize: $(VENV)/.tested ## run the tests of the native code under AddressSanitizer and ThreadSanitizer
	$(BIN)/python -m tests.kernels.sanitize address $(ARGS)
	$(BIN)/python -m tests.kernels.sanitize thread $(ARGS)

bench: $(VENV)/.tested ## measure, and print one table
	$(BIN)/python -m tests.bench $(ARGS)

# TORCH_INDEX_URL: where pip finds PyTorch for CPUs; without it the image has the one for CUDA, which is larger.
IMAGE := moonshard:$(shell sed -n 's/^appVersion: "\(.*\)"/\1/p' helm/moonshard/Chart.yaml)
kind: $(VENV)/.tested ## build the nano image, install it in a kind cluster and run tests/kind/ there
	@for tool in docker kind kubectl; do command -v $$tool > /dev/null || { echo "make kind needs $$tool."; exit 1; }; done
	docker build --target nano --build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL) --tag $(IMAGE)-nano .
	kind get clusters | grep --quiet --line-regexp moonshard || kind create cluster --name moonshard
	kind load docker-image --name moonshard $(IMAGE)-nano
	kind get kubeconfig --name moonshard > $(VENV)/kubeconfig
	MOONSHARD_TEST_IMAGE=$(IMAGE) KUBECONFIG=$(CURDIR)/$(VENV)/kubeconfig $(BIN)/python -m pytest tests/kind $(ARGS)

lock: $(VENV)/bin/pip ## resolve the dependencies anew into requirements.lock (ARGS="--upgrade-package grpcio")
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --strip-extras --annotation-style line \
		--custom-compile-command "make lock" --output-file $(LOCK) $(ARGS) pyproject.toml

clean: ## remove the virtual environment and all build products
	rm -rf $(VENV) dist .coverage* protos/*_pb2* kernels/native/*.so services/wire/native/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

# Installing builds the protobuf modules and the CPU kernels, so their sources are prerequisites.
SOURCES := pyproject.toml $(LOCK) $(wildcard protos/*.proto protos/build.py kernels/native/*.cpp kernels/native/*.h kernels/native/amx/*.h kernels/native/*.py services/wire/native/*.cpp services/wire/native/*.h services/wire/native/*.py)

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/pip
	$(BIN)/python -m pip install --quiet --constraint $(LOCK) --editable '.[local]'
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint $(LOCK) --editable '.[local,test]'
	@$(PROMTOOL)
	@touch $@

# Prometheus' checker of rules and queries. Unpacked, not installed: the package would start a server. Where there is no
# apt-get, the tests that need it are skipped.
PROMTOOL = command -v promtool > /dev/null || ! command -v apt-get > /dev/null || { cd $(VENV) \
	&& { apt-get download prometheus > /dev/null 2>&1 || { apt-get update > /dev/null 2>&1; \
	apt-get download prometheus > /dev/null 2>&1; } && dpkg-deb --fsys-tarfile prometheus_*.deb \
	| tar --extract --directory bin --strip-components 3 ./usr/bin/promtool; rm -f prometheus_*.deb; } || true; }

# Debian leaves pip out of `venv` unless python3-venv is installed; then the pip outside puts one inside.
$(VENV)/bin/pip:
	@test -n '$(PYTHON)' || { echo 'Moonshard needs Python 3.11 or newer (make PYTHON=/path/to/python).'; exit 1; }
	@echo 'Setting up $(VENV), once; this takes some minutes.'
	@$(PYTHON) -m venv $(VENV) 2> /dev/null || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
