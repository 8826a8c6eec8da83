# Two commands do everything: `make demo` and `make test`. Both set up what they need, once.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
ARGS ?=

.PHONY: demo test claims bench docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    compress a real 135 M model to 3 bits and show what that cost (minutes)"
	@echo "make test    style, types and tests (minutes)"
	@echo "make claims  run the claims of all methods and append to claims/ledger.jsonl (about an hour)"
	@echo "make bench   passes against a peer, appended to benchmarks/results.jsonl (about an hour)"
	@echo "make docs    write the generated pages again"

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev,peft,data,plot]"
	touch $@

demo: .venv/ready
	$(BIN)/python -m trimtab.data.assets
	$(BIN)/python examples/demo.py $(ARGS)

test: .venv/ready
	$(BIN)/ruff check trimtab tests examples benchmarks
	$(BIN)/ruff format --check trimtab tests examples benchmarks
	$(BIN)/mypy
	$(BIN)/python -m trimtab.data.assets
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

claims: .venv/ready
	$(BIN)/trimtab claim --all $(ARGS)

bench: .venv/ready
	$(BIN)/python benchmarks/passes.py $(ARGS)

docs: .venv/ready
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv .bench-venv build dist *.egg-info
