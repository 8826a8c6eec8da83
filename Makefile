# Two commands do everything: `make demo` and `make test`. Both set up what they need, once.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
ARGS ?=
NATIVE := $(shell find native -type f -not -path '*/build/*' 2>/dev/null)
CMAKE ?= $(shell command -v cmake || echo $(BIN)/cmake)

.PHONY: demo test claims bench docs native native-test clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    compress a real 135 M model to 3 bits and show what that cost (minutes)"
	@echo "make test    style, types and tests (minutes)"
	@echo "make claims  run the claims that have no result by the present code, append to claims/ledger.jsonl (hours)"
	@echo "make bench   passes against a peer, appended to benchmarks/results.jsonl (about an hour)"
	@echo "make docs    write the generated pages again"
	@echo "make native  the compiled kernels, where there is a C++ compiler (a minute)"
	@echo "make native-test  their C++ tests with sanitizers (minutes)"

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev,peft,data,plot]"
	touch $@

native: .venv/native
.venv/native: .venv/ready $(NATIVE)
	@if command -v $${CXX:-c++} > /dev/null; then \
		$(BIN)/python -m pip install --quiet ./native; \
	else echo "no C++ compiler: without compiled kernels, packed models run unpacked"; fi
	touch $@

native-test: .venv/ready
	@test -x $(CMAKE) || $(BIN)/python -m pip install --quiet cmake
	for kind in address,undefined thread; do \
		$(CMAKE) -S native -B build/native-$$kind -DTRIMTAB_PYTHON=OFF -DTRIMTAB_TESTS=ON -DTRIMTAB_SANITIZE=$$kind > /dev/null && \
		$(CMAKE) --build build/native-$$kind --parallel 2 && build/native-$$kind/trimtab_tests || exit 1; \
	done

demo: .venv/native
	$(BIN)/python -m trimtab.data.assets
	$(BIN)/python examples/demo.py $(ARGS)

test: .venv/native
	$(BIN)/ruff check trimtab tests examples benchmarks
	$(BIN)/ruff format --check trimtab tests examples benchmarks
	$(BIN)/mypy
	$(BIN)/python -m trimtab.data.assets
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

claims: .venv/ready
	$(BIN)/trimtab claims run --missing $(ARGS)

bench: .venv/native
	$(BIN)/python benchmarks/passes.py $(ARGS)

docs: .venv/ready
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv .bench-venv build dist *.egg-info
