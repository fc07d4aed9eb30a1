# Every target first makes the environment current (nothing to do takes 0.1 s), says what it
# does and how long that usually takes, and can be repeated.
#
#   make run MODEL=Qwen/Qwen2.5-0.5B-Instruct    another model: a hub id or a folder
#   make test PYTHON=/usr/bin/python3.11         another interpreter to make the environment with

.SILENT:
.NOTPARALLEL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The first of these that is Python 3.11. Looked up when a target needs it, not for `make help`.
is_3_11 = -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
found = $(shell for python in python3.11 python3; do \
	if $$python $(is_3_11); then echo $$python; break; fi; done)
PYTHON ?= $(or $(found),$(error Python 3.11 is needed, and neither python3.11 nor python3 is that: \
	apt-get install python3.11 python3.11-venv, or conda env create -f environment.yml, \
	or make PYTHON=/path/to/python3.11))

environment = $(PYTHON) workshop_lib/tools/environment.py

# Two processes for tests, one of them for those that start Ray or vLLM (tests/conftest.py).
together = -n 2 --no-loadscope-reorder

.PHONY: help run test test-all bench guidellm lab notebooks check checks checks-environment lock clean distclean

help:
	echo "make run         run the four notebooks on this machine's own Ray and vLLM; a report in build/ (15 minutes)"
	echo "make lab         open JupyterLab on its start page; Ctrl-C ends it"
	echo "make test        run the tests (25 minutes)"
	echo "make test-all    run the tests and those that take minutes each"
	echo "make bench       measure the benchmark client, the trainer and log reading, each against another (13 minutes)"
	echo "make guidellm    install guidellm into .venv-guidellm; make bench then compares with it too (3 minutes)"
	echo "make notebooks   run the notebooks and keep their outputs in notebooks/"
	echo "make check       lint, format and types (1 minute)"
	echo "make checks      look at the manifests with kubernetes-validate and checkov (1 minute; 3 the first time)"
	echo "make checks-environment  install what make checks uses, into .venv-checks; .ci/run does"
	echo "make lock        regenerate requirements*.txt from requirements*.in; UPGRADE=1 takes the newest"
	echo "make clean       stop what the workshop started, remove build/ and .workshop/"
	echo "make distclean   make clean, and remove .venv"

run:
	$(environment) --say "Running the four notebooks on this machine: usually 15 minutes." \
		-- -m workshop_lib.tools.run

test:
	$(environment) --say "Running the tests: usually 20 to 30 minutes." \
		-- -m pytest $(together) -m "not slow"

test-all:
	$(environment) --say "Running all the tests, the slow ones too: usually 45 to 60 minutes." \
		-- -m pytest $(together)

bench:
	$(environment) --say "Measuring the client, the trainer and log reading: usually 13 minutes." \
		-- -m workshop_lib.tools.bench

# guidellm and the workshop do not fit into one environment either.
guidellm:
	$(environment) -- -m workshop_lib.tools.checks guidellm

lab:
	$(environment) --say "Opening JupyterLab on this machine only, ready in 5 seconds; Ctrl-C ends it." \
		-- -m workshop_lib.tools.lab

notebooks:
	$(environment) --say "Regenerating the notebooks' committed outputs: usually 20 minutes." \
		-- -m workshop_lib.tools.notebooks

check:
	$(environment) --say "Checking lint, format and types: usually under a minute." \
		-- -m ruff check .
	$(environment) -- -m ruff format --check .
	$(environment) -- -m mypy

# checkov and the workshop do not fit into one environment: the tools have a second one.
checks-environment:
	$(environment) -- -m workshop_lib.tools.checks

checks: checks-environment
	$(environment) --say "Checking every rendered manifest: usually under a minute." \
		-- -m pytest tests/checks

lock:
	$(PYTHON) workshop_lib/tools/lock.py

clean:
	$(environment) --existing --say "Stopping what the workshop started: usually under 20 seconds." \
		-- -m workshop_lib.cluster.local clean --all
	rm -rf build .workshop
	echo "Removed build/ and .workshop/; kept .venv and the models in the cache (make distclean removes .venv)."

distclean: clean
	rm -rf .venv .venv-checks .venv-guidellm
	echo "Removed .venv, .venv-checks and .venv-guidellm; the models in the cache are kept: $${WORKSHOP_MODELS_DIR:-$${XDG_CACHE_HOME:-~/.cache}/ray-vllm-grpo-workshop/models}"
