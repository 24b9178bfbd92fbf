# Every target works on a fresh clone. `make` alone lists them.

PYTHON  ?=
VENV    := .venv
BIN     := $(VENV)/bin
HARBOR := server/pilothouse/harbor
SOURCES := server/pilothouse steering_vectors/pilothouse probes/pilothouse tests
ARGS    ?=

export PYTHON VENV
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup setup-test serve test test-all lint bench harbor clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create .venv with the server in it (PYTHON=python3.12 chooses the interpreter)
	@requirements/setup.sh server

setup-test:
	@requirements/setup.sh test

serve: setup ## serve the embedded model on port 8000 (ARGS="MODEL --port 9000" serves another)
	$(BIN)/pilothouse serve $(ARGS)

lint: setup-test ## ruff, mypy --strict, import rules, Dockerfile
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

# Tests reach no network: models are built or embedded, and LiteLLM takes the price list it brought.
test test-all: export HF_HUB_OFFLINE := 1
test test-all: export LITELLM_LOCAL_MODEL_COST_MAP := True

test: lint ## every check that takes seconds or a minute
	$(BIN)/pytest -m "not slow" $(ARGS)

test-all: lint ## the slow ones too
	$(BIN)/pytest $(ARGS)

bench: setup ## what steering and probing cost, against plain vLLM
	@mkdir -p bench
	$(BIN)/pilothouse bench --json bench/results.json $(ARGS)

harbor: setup ## make the embedded model and its artefacts again
	$(BIN)/python -m pilothouse.harbor.build $(ARGS)
	$(BIN)/pilothouse vectors extract $(HARBOR)/data/honest.jsonl --name honest --layers 1 --split train \
		--recommended 0.5 1.5 --out $(HARBOR)/vectors/honest.safetensors
	$(BIN)/pilothouse vectors extract $(HARBOR)/data/cheerful.jsonl --name cheerful --layers 2 --split train \
		--recommended 1 3 --out $(HARBOR)/vectors/cheerful.safetensors
	$(BIN)/pilothouse probes train $(HARBOR)/data/statements.jsonl --only texts --name truthfulness --layers 5 \
		--out $(HARBOR)/probes/truthfulness.safetensors

clean: ## remove caches and builds; .venv stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis bench/scratch
	find server steering_vectors probes tests -name __pycache__ -type d -prune -exec rm -rf {} +
