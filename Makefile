# Every target works on a fresh clone. `make` alone lists them.

PYTHON  ?=
VENV    := .venv
BIN     := $(VENV)/bin
HARBOR := server/pilothouse/harbor
TONES  := cheerful gloomy formal casual
FACTS  := --facts $(HARBOR)/data/dose-facts.jsonl --write
SOURCES := server/pilothouse steering_vectors/pilothouse probes/pilothouse tests deploy/dashboards
ARGS    ?=

export PYTHON VENV
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: bench-records gpu help setup setup-test serve test test-all matrix lint rehearsal bench dashboards dashboards-demo harbor clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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
test test-all matrix: export HF_HUB_OFFLINE := 1
test test-all matrix: export LITELLM_LOCAL_MODEL_COST_MAP := True

test: lint ## every check that takes seconds or a minute
	$(BIN)/pytest -m "not slow" $(ARGS)

test-all: lint ## the slow ones too
	$(BIN)/pytest $(ARGS)

matrix: setup-test ## every cell of tests/matrix; writes its manifest and the README's tables
	PILOTHOUSE_MATRIX=write $(BIN)/pytest tests/matrix $(ARGS)

rehearsal: setup ## which seams VLLM=0.33.0 moves; its source is read, nothing is installed
	$(BIN)/python requirements/rehearse.py $(VLLM)

bench: setup ## what steering and probing cost, against plain vLLM, in half an hour (ARGS=--full: everything)
	@mkdir -p bench
	$(BIN)/pilothouse bench --json bench/results.json --report bench/report.md $(ARGS)

# The model runners one after the other, since vLLM chooses between them once for a process.
gpu: setup-test ## on a GPU: both of vLLM's model runners against Hugging Face, and what it costs with each
	for runner in 0 1; do \
		export VLLM_USE_V2_MODEL_RUNNER=$$runner && \
		$(BIN)/pytest -m engine tests/engine/test_parity.py tests/engine/test_chains.py tests/engine/test_cache.py \
			tests/engine/test_bf16.py tests/engine/test_unsteered.py tests/engine/test_selftest.py && \
		mkdir -p bench/gpu/runner-$$runner && \
		$(BIN)/pilothouse bench --json bench/gpu/runner-$$runner/results.json \
			--report bench/gpu/runner-$$runner/report.md $(ARGS) || \
		exit 1; \
	done

bench-records: setup ## what keeping records costs a request: healthy, slow, dead
	@mkdir -p bench
	$(BIN)/pilothouse bench-records --json bench/records.json $(ARGS)

dashboards: setup-test ## write deploy/grafana/dashboards from deploy/dashboards
	PYTHONPATH=deploy $(BIN)/python -m dashboards

dashboards-demo: setup-test ## a server, Prometheus, mixed traffic: what every panel and alert says (ARGS=--keep)
	PYTHONPATH=tests $(BIN)/python -m deploy_support.demo $(ARGS)

# Each step goes on where it was interrupted. Facts, topics, entities and wordings of the splits `select` and `calibrate`
# choose layers, strengths and thresholds; nothing here reads the split `eval`. The probe of a condition is of the layer
# at which every lying prompt's end scores above all tokens of other prompts; the gates' threshold lies halfway between.
harbor: setup-test ## make the embedded model and its artefacts again
	$(BIN)/python -m pilothouse.harbor.build $(ARGS)
	$(BIN)/pilothouse vectors extract $(HARBOR)/data/honest.jsonl --name honest --layers 2,3 --split train \
		--out $(HARBOR)/vectors/honest.safetensors
	$(BIN)/pilothouse vectors dose $(HARBOR)/vectors/honest.safetensors --effect $(HARBOR)/data/dose-honest.jsonl $(FACTS) \
		--positions generation --strengths 0.1,0.2,0.25,0.3,0.35,0.4,0.5,0.75,1
	for name in $(TONES); do \
		$(BIN)/pilothouse vectors extract $(HARBOR)/data/$$name.jsonl --name $$name --layers 1 --split train \
			--out $(HARBOR)/vectors/$$name.safetensors && \
		$(BIN)/pilothouse vectors dose $(HARBOR)/vectors/$$name.safetensors --effect $(HARBOR)/data/dose-$$name.jsonl $(FACTS) \
			--positions last_prompt --strengths 0.25,0.75,1,1.25,1.5,2,3 || exit 1; done
	$(BIN)/pilothouse probes train $(HARBOR)/data/statements.jsonl --only texts --name truthfulness --label true \
		--alarm low --out $(HARBOR)/probes/truthfulness.safetensors
	$(BIN)/python -m pilothouse.harbor.answers
	$(BIN)/pilothouse probes train $(HARBOR)/data/answers.jsonl --name hallucination --label "made up" \
		--alarm high --aggregate prompt_end --out $(HARBOR)/probes/hallucination.safetensors
	$(BIN)/pilothouse probes train $(HARBOR)/data/conditions.jsonl --name asked-to-lie --label "asked to lie" \
		--alarm high --labels token --aggregate max --layers 2 --out $(HARBOR)/probes/asked-to-lie.safetensors
	rm -rf $(HARBOR)/saes/harbor-l3
	$(BIN)/pilothouse sae train $(HARBOR)/data/corpus.jsonl --name harbor-l3 --architecture jumprelu --layer 3 --k 30 --width 1024 \
		--tokens 1500000 --out $(HARBOR)/saes
	$(BIN)/pilothouse sae label $(HARBOR)/saes/harbor-l3 $(HARBOR)/data/corpus.jsonl
	$(BIN)/python -m pilothouse.harbor.sae_effect
	$(BIN)/pilothouse eval harbor --json bench/harbor.json --out docs/harbor

clean: ## remove caches and builds; .venv stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis bench/scratch
	find server steering_vectors probes tests -name __pycache__ -type d -prune -exec rm -rf {} +
