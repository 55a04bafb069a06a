# `make demo` shows what sdr1 does; `make test` shows that it works. Everything else is here too.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
SEEDS ?= 304 305 306
# Of `make ablation`: pictures behind a rate, cells and iterations (empty: all, the preset's).
IMAGES ?= 100
CELLS ?=
ITERATIONS ?=
# Of `make gpu-check` where there is no network: Python there, and what it lacks beside torch, torchvision, transformers,
# peft and safetensors.
GPU_PYTHON ?= 3.12
GPU_WHEELS := annotated-types certifi charset-normalizer diffusers ftfy importlib-metadata omegaconf open-clip-torch pydantic \
  pydantic-core requests timm typing-extensions typing-inspection urllib3 wcwidth xxhash zipp

# glibc gives large tensors back to the kernel after every operation and pays page faults for the next one;
# keeping them makes elementwise work on a CPU two to five times faster.
MALLOC := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_TOP_PAD_=268435456

.PHONY: help setup demo demo-seeds test lint format bench ablation compare report chaos rehearse gpu-check gpu-wheels tries clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | column -t -s "$$(printf '\t')"

setup: $(STAMP) ## create .venv with the tested versions (again only when they change)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { echo \
	  "error: PYTHON: '$(PYTHON)' is not Python 3.11, 3.12 or 3.13: name one that is, e.g. make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing about 190 packages into $(VENV): two to ten minutes, 6 GB with torch"
	@$(BIN)/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## train the sandbox model, print before and after, write outputs/demo/
	$(MALLOC) $(BIN)/sdr1 sandbox demo

demo-seeds: setup ## the same for three seeds, with their mean
	$(MALLOC) $(BIN)/sdr1 sandbox demo --images 200 --out outputs/demo-seeds $(addprefix --seed ,$(SEEDS))

# Three processes for two cores: one of them runs the tests that start clusters, and mostly waits.
test: setup ## the tests
	$(MALLOC) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadgroup

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## write the style that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## every benchmark, one JSON each in outputs/bench/
	@set -e; for benchmark in $(basename $(notdir $(wildcard benchmarks/suite/*.py))); do \
	  echo "== $$benchmark"; $(MALLOC) $(BIN)/python -m benchmarks.suite.$$benchmark; done

report: setup ## base and trained model of the sandbox through the whole suite, and the page: outputs/report/index.html
	$(MALLOC) OMP_NUM_THREADS=1 $(BIN)/sdr1 sandbox report $(addprefix --also ,$(wildcard outputs/ablation))

ablation: setup ## rewards, alphas and noise on the sandbox: SEEDS, ITERATIONS, IMAGES, CELLS; goes on where it stopped
	$(MALLOC) $(BIN)/sdr1 sandbox ablation --images $(IMAGES) $(addprefix --seed ,$(SEEDS)) \
	  $(addprefix --only ,$(CELLS)) $(if $(ITERATIONS),iterations=$(ITERATIONS))

tries: setup ## settings of every method on the tuning split, before compare: outputs/tries/, their log in configs/studies/tries.json
	$(MALLOC) OMP_NUM_THREADS=1 $(BIN)/sdr1 compare --tune
	cp outputs/tries/tries.json configs/studies/tries.json

compare: setup ## every method of the field and our own on the sandbox, under one budget: outputs/compare/; goes on where it stopped
	$(MALLOC) OMP_NUM_THREADS=1 $(BIN)/sdr1 compare

chaos: setup ## seeded runs in which something dies: CHAOS_RUNS=50 CHAOS_SEED=0, counts in outputs/chaos.json
	$(MALLOC) $(BIN)/python -m tests.training.on_ray.chaos

rehearse: setup ## a job on hosts that join, leave and lose their link (root, network namespaces): outputs/rehearsal.json
	$(MALLOC) OMP_NUM_THREADS=1 $(BIN)/python -m tests.training.on_ray.rehearsal

gpu-check: $(if $(wildcard wheels),build/gpu,setup) ## what only a GPU can tell, in nine minutes: outputs/gpu_check.json; ARGS=--tiny: on the CPU
	PYTHONPATH=$(if $(wildcard wheels),build/gpu,.) $(if $(wildcard wheels),$(PYTHON),$(BIN)/python) -m benchmarks.gpu_check $(ARGS)

build/gpu: $(wildcard wheels/*.whl)
	$(PYTHON) -m pip install -q --no-index --no-deps --no-compile --upgrade --target $@ $^
	@touch $@

gpu-wheels: setup ## wheels/: what gpu-check needs on a machine without a network that has torch, transformers and peft
	$(BIN)/python -m pip download --no-deps --only-binary=:all: -c constraints.txt -d wheels --python-version $(GPU_PYTHON) \
	  $(addprefix --platform ,manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64) $(GPU_WHEELS)

clean: ## remove what make made; outputs/ stays
	rm -rf $(VENV) build wheels dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
