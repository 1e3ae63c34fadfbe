# Everything happens in a virtual environment of its own, .venv. `make help` lists the targets.
# PYTHON=python3.12 chooses another interpreter (after `make clean`).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# What the extension modules are built from. Python files need no rebuild: the install is editable.
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc bindings -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')
CXX_FILES = $(shell find csrc bindings tests/cpp -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')

.DELETE_ON_ERROR:
.PHONY: help build demo test test-py test-cpp test-cuda build-cuda bench-cuda sanitize lint format bench bench-speed docs-pictures clean

help:
	@echo "make demo      build, then run the demo on real gradients; writes demo.png"
	@echo "make test      build, then run every test, Python and C++"
	@echo "make test-cpp  the C++ tests alone;  make test-py  the Python tests alone"
	@echo "make test-cuda the tests that need a GPU, built from what python3 has: CMake, pybind11, pytest, torch; nothing is fetched"
	@echo "make sanitize  the C++ tests under the address, undefined-behaviour and thread sanitizers"
	@echo "make lint      ruff, mypy and clang-format, changing nothing;  make format  applies the formatters"
	@echo "make bench     the benchmarks;  make bench-speed  those of speed alone: peers, modes, scaling (15 minutes)"
	@echo "make bench-cuda the benchmarks on a GPU, built as test-cuda builds; writes benchmarks/results/cuda.md"
	@echo "make docs-pictures  the pictures and tables of docs/, measured again"
	@echo "make build     the package, editable, in $(VENV)"
	@echo "make clean     remove everything that was built, $(VENV) included"

demo: build
	$(BIN)/pysubmod demo -o demo.png

test: test-cpp test-py

test-py: build $(VENV)/.tools
	$(BIN)/python -m pytest

test-cpp: $(VENV)/.tools
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --workflow --preset release

# Without .venv: on a machine with a GPU the Python that has torch is the one to test. Code is made for its GPU alone.
build-cuda:
	cmake -S . -B build/cuda -DCMAKE_BUILD_TYPE=Release -DPYSUBMOD_CUDA=ON -DPYSUBMOD_INPLACE=ON \
	    -DPython_EXECUTABLE="$$(command -v $(PYTHON))" $(if $(wildcard /dev/nvidiactl),-DCMAKE_CUDA_ARCHITECTURES=native)
	cmake --build build/cuda --parallel

test-cuda: build-cuda
	$(PYTHON) -m pytest -m cuda tests/test_cuda.py

bench-cuda: build-cuda
	PYTHONPATH="$(CURDIR)" $(PYTHON) benchmarks/bench_cuda.py

sanitize: $(VENV)/.tools
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --workflow --preset asan
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --workflow --preset tsan

lint: $(VENV)/.tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.tools
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

bench: build $(VENV)/.tools
	set -e; for script in benchmarks/bench_*.py; do $(BIN)/python $$script; done

bench-speed: build $(VENV)/.tools
	set -e; for name in peers modes scaling; do $(BIN)/python benchmarks/bench_$$name.py; done

docs-pictures: build $(VENV)/.tools
	$(BIN)/python docs/make_pictures.py

clean:
	rm -rf $(VENV) build dist *.egg-info pysubmod/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pysubmod tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

build: $(VENV)/.built

# The stamp alone does not know that somebody removed the built modules (git clean, say).
ifeq ($(wildcard pysubmod/_core.*.so),)
.PHONY: $(VENV)/.built
endif

$(VENV)/.built: $(SOURCES) | $(VENV)/.made
	$(PIP) install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.tools: requirements-test.txt | $(VENV)/.made
	$(PIP) install --quiet --requirement requirements-test.txt
	@touch $@

# A bare Debian or Ubuntu keeps two parts of Python in packages of their own: say so before pip does in its own words.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Python >= 3.10 is needed; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	    { echo "Python cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	    { echo "Python's headers are missing: apt-get install python3-dev" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
