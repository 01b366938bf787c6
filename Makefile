# `make serve` and `make test` are the main commands. Each prepares what it needs; a second run has nothing to prepare.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help serve test test-fast test-vllm test-gguf test-clients test-compose fuzz coverage check fmt lock setup stop-docker clean

ARGS ?=
PROGRAMS ?= 10000
EXTRA ?= cpu

# $(call with_setup,EXTRA): Python environment, Docker daemon and sandbox image, for the command that follows.
with_setup = scripts/ensure-venv $(1) && DOCKER_HOST=$$(scripts/ensure-docker) && export DOCKER_HOST && \
	scripts/ensure-sandbox-image && export PATH="$$PWD/.venv/bin:$$PATH"

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

serve: ## Serve the quickstart model on http://127.0.0.1:8000 (ARGS="--port 9000" adds options)
	@$(call with_setup,cpu) && exec ih-grpo serve --sandbox in-process $(ARGS)

test: ## Check formatting, lint and types, then run the tests (ARGS="-k name" selects; ARGS="-m long" runs the excluded ones)
	@$(call with_setup,dev) && exec scripts/run-tests all $(ARGS)

test-fast: ## Run the tests that need no Docker and take less than ten seconds each
	@scripts/ensure-venv dev
	@scripts/run-tests fast $(ARGS)

test-vllm: ## Run the tests that need vLLM, on the CPU, in .venv-vllm (2 GB)
	@$(call with_setup,dev) && exec scripts/run-tests vllm $(ARGS)

test-gguf: ## Run the tests that need llama-cpp-python; the first time this compiles it (15 minutes)
	@scripts/ensure-venv dev
	@scripts/run-tests gguf $(ARGS)

test-clients: ## Run third-party API clients against a server (OpenAI's SDKs, LangChain, LiteLLM, ...)
	@scripts/ensure-venv dev
	@scripts/run-tests clients $(ARGS)

test-compose: ## Start the whole stack with Docker Compose, break it, stop it
	@$(call with_setup,dev) && exec scripts/run-tests compose $(ARGS)

fuzz: ## Compare eager execution with plain execution and a new interpreter on 10,000 random programs (PROGRAMS=n)
	@$(call with_setup,dev) && IHGRPO_REQUIRE_DOCKER=1 IHGRPO_DIFFERENTIAL_EXAMPLES=$(PROGRAMS) \
		exec scripts/run-tests fuzz $(ARGS)

coverage: ## Measure branch coverage with the tests of test-fast; fails below the floor in pyproject.toml
	@scripts/ensure-venv dev
	@scripts/run-tests coverage $(ARGS)

check: ## Check formatting, lint and types
	@scripts/ensure-venv dev
	@scripts/check

fmt: ## Format the code and apply ruff's fixes
	@scripts/ensure-venv dev
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

# torch and the packages that only its CUDA builds depend on are removed from the result, see requirements/torch.txt.
COMPILE = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --custom-compile-command "make lock" $(ARGS)
lock: ## Update requirements/ after a change of the dependencies (ARGS=--upgrade takes the newest versions)
	@scripts/ensure-venv dev
	@$(COMPILE) pyproject.toml --extra dev --group build -c requirements/torch.txt -o requirements/dev.txt >/dev/null
	@for extra in train cpu; do $(COMPILE) pyproject.toml --extra $$extra --group build -c requirements/torch.txt \
		-c requirements/dev.txt -o requirements/$$extra.txt >/dev/null || exit; done
	@$(COMPILE) pyproject.toml requirements/vllm.in --extra vllm-test --group build --overrides requirements/torch.txt \
		--overrides requirements/vllm-overrides.in -o requirements/vllm.txt >/dev/null
	@$(COMPILE) requirements/gguf.in -c requirements/dev.txt -o requirements/gguf.txt >/dev/null
	@$(COMPILE) --group release -o requirements/release.txt >/dev/null
	@sed -i -E '/^(torch|triton|nvidia-|cuda-)/,/[^\\]$$/d' requirements/dev.txt requirements/train.txt \
		requirements/cpu.txt requirements/vllm.txt

setup: ## Prepare everything and start nothing (EXTRA=train adds what training needs)
	@$(call with_setup,$(EXTRA)) && \
		echo "==> Ready. Next: source .venv/bin/activate, or make serve" >&2

stop-docker: ## Stop the Docker daemon that these commands started
	@scripts/stop-docker

clean: ## Remove .venv, .venv-vllm and the caches in this folder (Docker images and runs are kept)
	@rm -rf .venv .venv-vllm .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build
	@find service trainer tests sandbox_image benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
