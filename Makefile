# The commands that people and CI run. Needs Python 3.11 or newer, Node 20 or newer, and make.
# Left out, one of those on the PATH; see isomorph/find_python.py.
PYTHON ?=
BIN := .venv/bin
VLLM := .isomorph/cache/vllm
LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11 --no-emit-find-links \
  --no-emit-index-url --custom-compile-command 'make lock'

# The CDK library prints a banner on Node 18 and 20 (20 was tried); the README says what to have.
export JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION ?= 18,20

.DEFAULT_GOAL := help
.PHONY: help up down test e2e check format synth install dev torch vllm wheelhouses lock clean

help:  ## Show the commands
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

up: install  ## Set up, deploy `local` to the embedded AWS, and ask the model a question
	@$(BIN)/isomorph up

down:  ## Stop the embedded AWS and all that it runs; keep the environment and the download caches
	@if [ -x $(BIN)/isomorph ]; then $(BIN)/isomorph down; else echo "nothing is installed here"; fi

test: dev torch vllm  ## Everything that CI runs, with the time of each part
	@$(BIN)/python -m tests

e2e: dev torch  ## Only the end-to-end deployment against the embedded AWS
	@$(BIN)/python -m tests e2e

check: dev  ## Only format, lint, types and the fast tests
	@$(BIN)/python -m tests format lint types shell unit local_aws

format: dev  ## Rewrite the code in the project's format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

synth: install wheelhouses  ## Write the templates of every environment to cdk.out, through every gate
	@node_modules/.bin/cdk synth --quiet

install: $(BIN)/.installed node_modules/.installed  ## Make .venv and node_modules from the pinned lists

dev: install $(BIN)/.dev  ## ... with what tests and linters need

torch: install $(BIN)/.torch  ## ... with torch (its CPU build where pip offers one) and transformers

vllm: install $(VLLM)/.installed  ## Make an environment with vLLM's build for CPUs, an engine beside ours

wheelhouses: install  ## Download the wheels that nodes install (cached)
	@$(BIN)/isomorph wheelhouses

lock: $(BIN)/.dev  ## Pin again after a change of a *.in file
	@# For every Python and system: some packages need more on others than on this one.
	@for file in requirements requirements-dev $(basename $(wildcard model_code/*/*/requirements.in)); do \
	  $(LOCK) --universal --output-file $$file.txt $$file.in || exit 1; done
	@# vLLM wants torch's CPU build, which PyPI lacks: UV_INDEX or UV_FIND_LINKS says where it is.
	@UV_INDEX_STRATEGY=unsafe-best-match $(LOCK) --python-platform x86_64-manylinux_2_28 \
	  $(foreach name,torch torchvision torchaudio torchcodec triton,--no-emit-package $(name)) \
	  --output-file requirements-vllm.txt requirements-vllm.in

clean: down  ## Remove everything that these commands made, caches and environment too
	@rm -rf .venv node_modules .isomorph cdk.out

$(BIN)/pip:  # the last of what venv makes: without it, it was killed
	@finder="$$(command -v $(or $(PYTHON),python3) || echo python3)" && \
	  python="$$("$$finder" isomorph/find_python.py $(PYTHON))" && \
	  echo "making .venv ..." && "$$python" -m venv .venv

$(BIN)/.installed: requirements.txt pyproject.toml | $(BIN)/pip
	@echo "installing requirements.txt into .venv (about 170 MB to download the first time) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(BIN)/.dev: requirements-dev.txt | $(BIN)/.installed
	@echo "installing requirements-dev.txt into .venv ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

$(BIN)/.torch: requirements-torch.txt | $(BIN)/.installed
	@echo "installing requirements-torch.txt into .venv ..."
	@$(BIN)/python -m isomorph.torch_build requirements-torch.txt
	@touch $@

$(VLLM)/.installed: requirements-vllm.txt requirements-torch.txt | $(BIN)/.installed
	@echo "installing requirements-vllm.txt into $(VLLM) (about 700 MB to download the first time) ..."
	@rm -rf $(VLLM) && $(BIN)/python -m venv $(VLLM)
	@$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes -r requirements-vllm.txt
	@grep '^torch==' requirements-torch.txt >$(VLLM)/torch.txt
	@$(BIN)/python -m isomorph.torch_build $(VLLM)/torch.txt $(VLLM)/bin/python --no-compile --no-deps
	@# Compiles the fifth of it that is imported: 15 s of its first start.
	@$(VLLM)/bin/python -W ignore -c 'import vllm.entrypoints.openai.api_server'
	@touch $@

node_modules/.installed: package-lock.json
	@echo "installing the pinned CDK command line ..." && npm ci --silent --no-audit --no-fund
	@touch $@
