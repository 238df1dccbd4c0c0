# Everything runs in a virtual environment of its own, .venv, which the first target makes: Python 3.11 and pip suffice.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help serve chat test check bench kind clean

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

serve: $(VENV)/.installed ## start a whole cluster on this machine and print its URL (ARGS="--experts 4 ...")
	$(BIN)/moonshard up $(ARGS)

chat: $(VENV)/.installed ## talk to the running cluster in the terminal
	$(BIN)/moonshard chat $(ARGS)

test: $(VENV)/.tested ## run all tests (ARGS="-k chat")
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.tested ## lint and type-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

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

clean: ## remove the virtual environment and all build products
	rm -rf $(VENV) dist protos/*_pb2* kernels/native/*.so

# Installing builds the protobuf modules and the CPU kernels, so their sources are prerequisites.
SOURCES := pyproject.toml $(wildcard protos/*.proto protos/build.py kernels/native/*.cpp kernels/native/*.h kernels/native/*.py)

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/pip
	$(BIN)/python -m pip install --quiet --editable '.[local]'
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[local,test]'
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
