# Two commands do everything: `make demo` and `make test`. Both set up what they need, once.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
LLAMA_CPP ?= llama-cpp-python==0.3.36
ARGS ?=
ARM_CXX ?= aarch64-linux-gnu-g++
NATIVE := $(shell find native -type f -not -path '*/build/*' 2>/dev/null)
CMAKE ?= $(shell command -v cmake || echo $(BIN)/cmake)

.PHONY: demo test lint test-slow faults claims bench peers docs site wheels native native-test native-test-neon clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    compress a real 135 M model to 3 bits and show what that cost (minutes)"
	@echo "make test    style, types and tests (minutes)"
	@echo "make test-slow  tests that start many processes, or have quicker siblings (minutes)"
	@echo "make faults  kills, full disks and hostile files, counted, appended to faults/ledger.jsonl (minutes)"
	@echo "make claims  run the claims that have no result by the present code, append to claims/ledger.jsonl (hours)"
	@echo "make bench   passes against a peer, appended to benchmarks/results.jsonl (about an hour)"
	@echo "make peers   what benchmarks/runtime.py compares with: llama.cpp, built twice (20 minutes on 2 cores)"
	@echo "make docs    write the generated pages again"
	@echo "make site    the documentation as a site, in build/site"
	@echo "make wheels  both packages as wheels, in dist"
	@echo "make native  the compiled kernels, where there is a C++ compiler (a minute)"
	@echo "make native-test  their C++ tests with sanitizers (minutes)"
	@echo "make native-test-neon  the same tests for ARM, where there are a cross compiler and qemu-user (minutes)"

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev,peft,data,plot,docs]"
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

# Emulated processors: one with what every 64-bit ARM has, and one with dot products as well.
native-test-neon: .venv/ready
	@for word in $(ARM_CXX) qemu-aarch64; do command -v $$word > /dev/null || \
		{ echo "there is no $$word (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)"; exit 1; }; done
	@test -x $(CMAKE) || $(BIN)/python -m pip install --quiet cmake
	$(CMAKE) -S native -B build/native-neon -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=$(ARM_CXX) -DCMAKE_EXE_LINKER_FLAGS=-static -DTRIMTAB_PYTHON=OFF -DTRIMTAB_TESTS=ON > /dev/null
	$(CMAKE) --build build/native-neon --parallel 2
	for cpu in cortex-a53 neoverse-n1; do qemu-aarch64 -cpu $$cpu build/native-neon/trimtab_tests 2 || exit 1; done

demo: .venv/native
	$(BIN)/python -m trimtab.data.assets
	$(BIN)/python examples/demo.py $(ARGS)

# Style and types beside the compiling, which waits for nothing of theirs.
test: .venv/ready
	$(MAKE) --jobs 2 --output-sync=target lint .venv/native
	$(BIN)/python -m trimtab.data.assets
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check trimtab tests examples benchmarks
	$(BIN)/ruff format --check trimtab tests examples benchmarks
	$(BIN)/mypy

test-slow: .venv/native
	$(BIN)/python -m trimtab.data.assets
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow $(ARGS)

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

site: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheels: .venv/ready
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist . ./native

clean:
	rm -rf .venv .bench-venv .runtime-venv .runtime-venv-avx2 build dist *.egg-info
