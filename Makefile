# Two commands do everything: `make demo` and `make test`. Both set up what they need, once.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
LLAMA_CPP ?= llama-cpp-python==0.3.36
ARGS ?=
NATIVE := $(shell find native -type f -not -path '*/build/*' 2>/dev/null)
CMAKE ?= $(shell command -v cmake || echo $(BIN)/cmake)

.PHONY: demo test faults claims bench peers docs native native-test clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    compress a real 135 M model to 3 bits and show what that cost (minutes)"
	@echo "make test    style, types and tests (minutes)"
	@echo "make faults  kills, full disks and hostile files, counted, appended to faults/ledger.jsonl (minutes)"
	@echo "make claims  run the claims that have no result by the present code, append to claims/ledger.jsonl (hours)"
	@echo "make bench   passes against a peer, appended to benchmarks/results.jsonl (about an hour)"
	@echo "make peers   what benchmarks/runtime.py compares with: llama.cpp, built twice (20 minutes on 2 cores)"
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

faults: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/campaign.py $(ARGS)

claims: .venv/ready
	$(BIN)/trimtab claims run --missing $(ARGS)

bench: .venv/native
	$(BIN)/python benchmarks/passes.py $(ARGS)

# llama.cpp, built here by the compiler that is here: for this processor, and once more without AVX-512.
peers: .runtime-venv/ready .runtime-venv-avx2/ready
.runtime-venv/ready: LLAMA := -DGGML_NATIVE=ON
.runtime-venv-avx2/ready: LLAMA := -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=OFF
.runtime-venv/ready .runtime-venv-avx2/ready:
	$(PYTHON) -m venv $(@D)
	CMAKE_BUILD_PARALLEL_LEVEL=2 CMAKE_ARGS="$(LLAMA) -DLLAVA_BUILD=OFF" $(@D)/bin/python -m pip install --quiet \
		--no-cache-dir --no-binary llama-cpp-python "$(LLAMA_CPP)"
	touch $@

docs: .venv/ready
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/reliability.py

clean:
	rm -rf .venv .bench-venv .runtime-venv .runtime-venv-avx2 build dist *.egg-info
