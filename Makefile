# make demo trains the example; make test runs the tests. Both set up .venv on first use.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: build
build:  ## compiles _cpu in place, for development: make build VENV=... 
	cmake -S . -B build/dev -G Ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) >/dev/null
	cmake --build build/dev
	cp build/dev/_cpu*.so python/plait/
