# The two commands are `make serve` and `make test`; each prepares what it needs and costs nothing to run again.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help serve test test-vllm test-clients test-compose test-fast check fmt setup stop-docker clean

ARGS ?=
EXTRA ?= cpu

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

serve: ## Serve the quickstart model on http://127.0.0.1:8000 (ARGS="--port 9000" adds options)
	@scripts/with-setup cpu ih-grpo serve --sandbox in-process $(ARGS)

test: ## Check formatting, lint and types, then run the tests (ARGS="-k name" selects, ARGS="-m long" runs those left out)
	@scripts/with-setup dev scripts/run-tests $(ARGS)

test-vllm: ## Run the tests that need vLLM, on the CPU, in an environment of their own (2 GB)
	@scripts/with-setup dev scripts/test-vllm $(ARGS)

test-clients: ## Talk to a server through the clients of others (OpenAI's SDKs, LangChain, LiteLLM, ...)
	@scripts/ensure-venv dev
	@scripts/ensure-clients
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m clients tests/conformance $(ARGS)

test-compose: ## Bring the whole stack up with Docker Compose, break it, take it down
	@scripts/with-setup dev scripts/test-compose $(ARGS)

test-fast: ## Only the quick tests that need no Docker
	@scripts/ensure-venv dev
	@.venv/bin/python -m pytest -m "not docker and not slow and not gpu and not clients" $(ARGS)

check: ## Check formatting, lint and types
	@scripts/ensure-venv dev
	@scripts/check

fmt: ## Format the code and mend what ruff can mend
	@scripts/ensure-venv dev
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

setup: ## Prepare all and start nothing (EXTRA=train adds what training needs)
	@scripts/with-setup $(EXTRA)

stop-docker: ## Stop the Docker daemon, if it was started by these commands
	@scripts/stop-docker

clean: ## Remove .venv and the caches of this folder (not Docker's images, not your runs)
	@rm -rf .venv .venv-vllm .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build
	@find service trainer tests sandbox_image benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
