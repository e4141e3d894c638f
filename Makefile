# Each target sets up what it needs in .venv, once. TORCH and PYTHON may be overridden: make test TORCH=torch==2.14.1

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_STAMP := $(VENV)/$(subst =,-,$(TORCH)).stamp
BUILD_REQUIRES := "setuptools>=77" "cmake>=3.18" ninja "pybind11>=2.13"
NATIVE := setup.py CMakeLists.txt $(shell find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.PHONY: bench test check style gpu install clean

bench: install  ## fused against eager and torch.compile, on this machine
	$(BIN)/flowkernels bench

test: install  ## everything that can be proven without a GPU
	$(BIN)/python tests/stages.py

gpu: install  ## everything that only a GPU shows, as one JSON to paste
	$(BIN)/python tests/gpu/run.py

check: style  ## style, types and the quick tests
	$(BIN)/python -m pytest -m "not slow" tests/ops tests/nn

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
	$(BIN)/mypy

install: $(VENV)/install.stamp

$(VENV)/bin/python:
	@echo "make: creating $(VENV) with $(PYTHON) and $(TORCH)"
	$(PYTHON) -m venv $(VENV)

$(TORCH_STAMP): $(VENV)/bin/python
	$(BIN)/pip install --quiet "$(TORCH)" $(BUILD_REQUIRES)
	@rm -f $(VENV)/torch*.stamp
	@touch $@

# Without isolation, so that a second build finds the compiled objects of the first.
$(VENV)/install.stamp: $(TORCH_STAMP) pyproject.toml $(NATIVE)
	@echo "make: building and installing flowkernels into $(VENV)"
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[test,train,dev,libraries]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info flowkernels/*.so
