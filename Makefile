# Every target first makes the environment current (environment.sh; 0.02 s when nothing is to do).
#
#   make run MODEL=Qwen/Qwen2.5-0.5B-Instruct    another model: a hub id or a folder
#   make run ARGS='02 -p MOST_IN_FLIGHT 8'       what `workshop run --help` lists
#   make test PYTHON=/usr/bin/python3.11         another interpreter to make the environment with

.SILENT:
.NOTPARALLEL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The environment's programs, nothing of the caller's Python; what is imported is compiled once.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

# Two processes for tests, one of them for those that start Ray or vLLM (tests/conftest.py).
pytest = pytest -n 2 --no-loadscope-reorder

.PHONY: help environment run lab test clean \
	test-all bench notebooks check checks checks-environment lock distclean

help:
	echo "make run         run the four notebooks on this machine's own Ray and vLLM; a report in build/ (11 minutes)"
	echo "make lab         open JupyterLab on its start page; Ctrl-C ends it"
	echo "make test        run the tests (20 minutes)"
	echo "make clean       stop what the workshop started, remove build/ and .workshop/"
	echo
	echo "maintainers (CONTRIBUTING.md):"
	echo "make test-all    run the tests and those that take minutes each (35 minutes)"
	echo "make check       lint, format and types (1 minute)"
	echo "make checks      look at the manifests with kubernetes-validate and checkov (1 minute)"
	echo "make checks-environment  install what make checks uses, into .venv-checks"
	echo "make notebooks   run the notebooks and keep their outputs in notebooks/ (20 minutes)"
	echo "make bench       compare the benchmark client, a training step and log reading (13 minutes)"
	echo "make lock        resolve requirements*.in into requirements*.txt; UPGRADE=1 takes the newest"
	echo "make environment make .venv what requirements.txt says"
	echo "make distclean   make clean, and remove the environments"

environment:
	sh environment.sh

run: environment
	workshop run $(ARGS)

lab: environment
	workshop lab $(ARGS)

test: environment
	$(pytest) -m "not slow"

test-all: environment
	$(pytest)

bench: environment
	for name in client grpo logs; do python tests/bench/$$name.py $(ARGS) || failed=1; done; exit $${failed:-0}

# checkov with kubernetes-validate does not fit into the workshop's environment.
checks-environment:
	sh environment.sh checks

checks: environment checks-environment
	pytest tests/checks

notebooks: environment
	workshop run --keep-outputs

check: environment
	ruff check .
	ruff format --check .
	mypy

lock:
	sh environment.sh lock

clean:
	if [ -d .workshop ]; then sh environment.sh && workshop clean; fi
	rm -rf build .workshop
	echo "Removed build/ and .workshop/; kept .venv and the models in the cache (make distclean removes .venv)."

distclean: clean
	rm -rf .venv .venv-checks .venv-uv
	echo "Removed the environments; the models in the cache are kept: $${WORKSHOP_MODELS_DIR:-$${XDG_CACHE_HOME:-~/.cache}/ray-vllm-grpo-workshop/models}"
