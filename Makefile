# Two commands do everything on a fresh machine with Python 3.11+, git and make:
#   make demo    creates the environment, installs ptq, runs the main job (about a minute after installing)
#   make test    creates the environment, installs ptq and what the tests need, passes the tests
# PYTHON chooses the interpreter the environment is made with, TORCH_INDEX the build of torch.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: install demo test lint types docs demo-base proofs bench bench-gpu bench-quick clean

install: $(VENV)/installed

# Where torch comes from. Empty: pip's own index, which on Linux x86_64 means the newest CUDA build, gigabytes of it, and a driver
# that runs that CUDA. Without a GPU: make TORCH_INDEX=https://download.pytorch.org/whl/cpu …; for an older driver …/whl/cu126.
TORCH_INDEX ?=

# torch first and by itself, so that its index serves nothing else; pinned, so that no other build replaces it later.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "ptq needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and ptq into $(VENV) (a few minutes the first time)"
	$(PIP) torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e '.[test]'
	@touch $@

demo: $(VENV)/installed
	$(BIN)/ptq demo

# Two files of tests at a time, one thread each: about seven minutes on two cores.
test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Reference pages from the code; `make test` fails when they are stale.
docs: $(VENV)/installed-test
	$(BIN)/python docs/generate_reference.py
	$(BIN)/python docs/generate_matrix.py

# Rebuilds the demo's base from its recipe (about 15 minutes on two cores).
demo-base: $(VENV)/installed
	rm -rf demo-home && $(BIN)/ptq demo --home demo-home --only-data
	PTQ_HOME=demo-home $(BIN)/ptq base pretrain recipes/demo/base.yaml --output demo-home/base
	rm -rf orchestrator/demo/base && mv demo-home/base orchestrator/demo/base && rm -rf demo-home

# Longer proofs on real data; each prints its table and writes it to docs/.
proofs: proof-processes proof-registry proof-lineage proof-isolation proof-warm proof-compiled proof-sst2 proof-e2e proof-fairness proof-queue proof-learning \
        proof-histories proof-soak proof-company proof-survivors proof-metrics

# Not phony: make looks for no pattern rule for a phony target, and would say that there is nothing to be done.
proof-%: $(VENV)/installed-test
	$(BIN)/python -m tests.benchmarks.$*

# The speed benchmark against PEFT: at most 25 minutes on two idle cores, going on where a cut one stopped; `bench-quick` two minutes.
bench: $(VENV)/installed-test
	$(BIN)/python -m tests.benchmarks.bench

# The same on one GPU with bases of 0.5B, 1.5B and 7B parameters in bf16, made here: an hour or two, 20 GB of disk, 40 GB of memory.
bench-gpu: $(VENV)/installed-test
	$(BIN)/python -m tests.benchmarks.bench --gpu

bench-quick: $(VENV)/installed-test
	$(BIN)/python -m tests.benchmarks.bench --quick --rounds 1

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
