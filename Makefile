# Thin on purpose: every target calls a program that can be called without make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help demo test lint format serve serve-open-nsfw bench regression clean

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+: *##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

demo: $(READY)   ## data -> training -> ONNX -> Triton -> verdicts -> latency, 10 to 13 minutes on two cores with bfloat16
	$(BIN)/python benchmarks/demo.py

test: $(READY)   ## the whole suite, against the real Triton server
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m alone

lint: $(READY)   ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

serve: $(READY)  ## run Triton on model_repository/
	$(BIN)/python -m serve

serve-open-nsfw: $(READY)  ## a real nudity filter for photographs, without training (Yahoo's open_nsfw, BSD-2)
	test -e runs/open_nsfw/repository/moderation || $(BIN)/python -m export import --preset open_nsfw --repository runs/open_nsfw/repository --report runs/open_nsfw/export
	$(BIN)/python -m serve --repository runs/open_nsfw/repository

bench: $(READY)  ## latency sweep against a server that it starts
	$(BIN)/python benchmarks/latency.py --serve

regression: $(READY) ## served speed as a share of in-process speed, against the kept baseline; a minute, on a quiet machine
	$(BIN)/python -m benchmarks.networks --backbone resnet18 --no-int8 --out runs/regression
	$(BIN)/python benchmarks/latency.py --serve --repository runs/regression/resnet18 --in-process --rounds 5 --window-s 1 --concurrency 1 --batch-size 1 --ratio-limit 0.01 --out runs/regression/latency
	$(BIN)/python benchmarks/regression.py --baseline benchmarks/baseline.json runs/regression/latency.json --bound 0.3

clean:           ## remove what was built: environment, data, runs, published models
	rm -rf $(VENV) data runs logs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find model_repository -mindepth 1 -not -name README.md -delete

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 13) else "Python 3.11 or 3.12 is needed, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@
