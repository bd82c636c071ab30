# Everything here sets itself up: a machine with Python 3.11 or newer, make and git needs nothing else by hand.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

# Arguments of the targets: make test ARGS="tests/unit -k ids", make demo IMAGE=~/debian.qcow2
ARGS ?=
IMAGE ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench docs format pins

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## the virtual environment in .venv, with pinned versions (done by the others when needed)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with its venv module is needed (Debian: apt install python3-venv); or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/pip || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## import a real image, kill the server in the middle, see it go on; IMAGE=path or URL to use your own
	$(BIN)/milepost demo $(if $(IMAGE),--image "$(IMAGE)")

test: $(STAMP)  ## all tests but the measuring ones; ARGS="tests/unit -k ids" for some
	$(BIN)/pytest --numprocesses 2 --dist worksteal $(ARGS)

check: $(STAMP)  ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## put the code into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure: throughput, latency, fsync; medians and ratios of one run
	$(BIN)/python -m bench $(ARGS)

docs: $(STAMP)  ## write the generated parts of docs/reference again
	$(BIN)/python tools/reference.py

pins: $(STAMP)  ## write constraints.txt again from a clean install
	$(BIN)/python tools/pins.py
