# Needs Python 3.11 or later, git and make. Everything else goes into POST_VENV, default .venv of this checkout.
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-cluster check env

VENV := $(or $(POST_VENV),.venv)
PYTHON := $(VENV)/bin/python

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

quickstart: env  ## toy city -> shards -> training -> scores, in minutes (ARGS="--out DIR")
	@"$(PYTHON)" pipelines/quickstart.py $(ARGS)

test: env  ## the tests (ARGS="tests/test_config.py")
	@"$(PYTHON)" -m pytest $(ARGS)

test-cluster: env  ## training killed in ten random ways, and as a job on several nodes; about half an hour
	@POST_KILL_SEEDS="0 1 2 3 4 5 6 7 8 9" "$(PYTHON)" -m pytest tests/test_kills.py tests/test_jobs.py tests/test_stopping.py \
		-m "slow or not slow" $(ARGS)

check: env  ## ruff and mypy
	@"$(PYTHON)" -m ruff check . && "$(PYTHON)" -m ruff format --check . && "$(PYTHON)" -m mypy

# The environment is whole when its stamp names the lock; it is rebuilt when the lock changes.
env:  ## the environment alone; done already: does nothing
	@VENV="$(VENV)" bash .ci/environment
