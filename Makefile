# Two commands do everything from a clean clone: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FITS := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: install demo test test-packages test-all lint bench clean

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

install: $(STAMP)

# tinysoundfont is installed without its dependencies: pyaudio, which it needs for live playback only, has no wheel and
# wants system headers.
$(STAMP): pyproject.toml constraints.txt
	$(BIN)/python -c '$(FITS)' 2>/dev/null || $(PYTHON) -c '$(FITS)' || { echo "layersync needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(BIN)/python -c '$(FITS)' 2>/dev/null || rm -rf $(VENV)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --upgrade --constraint constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable ".[test,lint]"
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps tinysoundfont || \
		echo "tinysoundfont cannot be installed here: recipes on gm-notes, audio/quick and small, will ask for it" >&2
	touch $(STAMP)

demo: install
	rm -rf demo
	$(BIN)/layersync compare image/quick audio/quick motion/quick --seeds 1 --jobs 2 --out demo

test: install
	$(PYTEST) -m "not slow and not packages"

test-packages: install
	$(PYTEST) -m "not slow and packages"

test-all: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo runs comparisons build *.egg-info
