# Two commands: `make serve` and `make test`. Both make .venv first and need Python 3.11 or later, nothing else.
# A C++ compiler is used if there is one.

HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
SANITIZE ?= address,undefined
VENV := .venv
PY := $(VENV)/bin/python
TORCH := torch>=2.13,<2.14
# Where torch comes from. Empty: on Linux without an NVIDIA driver its CPU build (200 MB instead of several GB),
# elsewhere what pip takes by itself. For AMD: TORCH_INDEX=https://download.pytorch.org/whl/rocm6.4
TORCH_INDEX ?=
NATIVE := CMakeLists.txt $(shell find baltoro/kernels/csrc -type f)
CPP := $(shell find baltoro/kernels/csrc tests/native -name "*.cpp" -o -name "*.h" -o -name "*.inl")

.DEFAULT_GOAL := help
.PHONY: help install format check check-native check-door test clients docs bench serve clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s%s\n", $$1, $$2}' Makefile

install: $(VENV)/.ready  ## .venv with baltoro, ready to serve

serve: $(VENV)/.ready  ## serve the embedded nano model (HOST, PORT, MODEL=DIR, ARGS="--keys")
	@exec $(VENV)/bin/baltoro serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: $(VENV)/.ready-test  ## the test suite (ARGS="-k name -x")
	$(PY) -m pytest $(ARGS)

check: $(VENV)/.ready-test  ## formatting, lint, types, import floors
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP)
	$(VENV)/bin/pyright
	$(PY) -m pytest -q tests/test_floors.py

check-native:  ## the C++ kernels under the address and undefined-behaviour sanitizers (CXX=..., RUN=..., SANITIZE=)
	cmake -S tests/native -B build/native-$(notdir $(CXX)) -DCMAKE_CXX_COMPILER=$(CXX) -DSANITIZE=$(SANITIZE) > /dev/null
	cmake --build build/native-$(notdir $(CXX))
	$(RUN) build/native-$(notdir $(CXX))/check

# The sanitizer's library must be there before Python is, and C++'s own with it, or no exception can be caught.
check-door: $(VENV)/.ready-test  ## the kernels' Python door under the same sanitizers (g++; CXX=...)
	$(PY) -m pip install --quiet --target build/door/tools 'nanobind>=2.9'
	cmake -S . -B build/door -DCMAKE_CXX_COMPILER=$(CXX) -DPython_EXECUTABLE=$(abspath $(PY)) \
	  -Dnanobind_DIR=$$(PYTHONPATH=build/door/tools $(PY) -m nanobind --cmake_dir) \
	  -DSANITIZE=$(SANITIZE) > /dev/null
	cmake --build build/door
	ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  $(PY) -m pytest -q -p tests.native.sanitized tests/kernels/test_door.py $(ARGS)

clients: $(VENV)/.ready-test  ## agents and libraries that others wrote, run against our server (npm for three of them)
	PYTHON=$(abspath $(PY)) tests/clients/install.sh
	$(PY) -m pytest -m clients tests/clients $(ARGS)

format: $(VENV)/.ready-test  ## rewrite the sources in the house style
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/clang-format -i $(CPP)

docs: $(VENV)/.ready-test  ## rewrite docs/cli.md from the help texts
	$(PY) docs/generate_cli.py > docs/cli.md.new && mv docs/cli.md.new docs/cli.md

bench: $(VENV)/.ready-test  ## measure this machine; one JSON line each
	@for script in bench/*.py; do $(PY) $$script || exit 1; done

clean:  ## forget .venv and builds
	rm -rf $(VENV) build

# --- set-up ---------------------------------------------------------------------------------------------------

# A candidate must run (version managers leave shims that don't) and be new enough.
$(PY):
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "baltoro: $$($$python --version) -> $(VENV)"; \
	    $$python -m venv $(VENV) || { rm -rf $(VENV); \
	      echo 'baltoro: python could not make a virtual environment (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }; \
	    exit 0; \
	  fi; \
	done; \
	echo 'baltoro: needs Python 3.11 or later; none was found (set PYTHON=/path/to/python3)' >&2; exit 1

# torch first, so that the choice of its build is ours and not the resolver's. A CPU build carries "+cpu" in its version
# and therefore goes before the plain one when both are offered; pip passes over an extra index that it cannot reach.
$(VENV)/.torch: | $(PY)
	@index=; if [ -n '$(TORCH_INDEX)' ]; then index='--index-url $(TORCH_INDEX)'; \
	elif [ "$$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 \
	  && ! $(PY) -m pip install --dry-run --no-deps '$(TORCH)' 2>/dev/null | grep -q '+cpu'; then \
	  index='--extra-index-url https://download.pytorch.org/whl/cpu'; \
	fi; \
	$(PY) -m pip install '$(TORCH)' $$index
	@touch $@

$(VENV)/.ready: pyproject.toml $(NATIVE) $(VENV)/.torch
	$(PY) -m pip install -e .
	@touch $@

$(VENV)/.ready-test: pyproject.toml $(NATIVE) $(VENV)/.torch
	$(PY) -m pip install -e '.[test]'
	@touch $@ $(VENV)/.ready
