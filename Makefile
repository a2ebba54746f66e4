# The two commands that matter are `make demo` and `make test`: each makes .venv if it is not there, installs with
# pip from pyproject.toml, and runs. A second call installs nothing, unless pyproject.toml has changed.
#
#   make demo ARGS="--dataset fashion-mnist --num-clients 10"    pass options on to `fedmq demo`
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu   take torch without CUDA: 1.3 GB, not 5
#   make test PYTHON=python3.12                                  choose the Python that .venv is made with

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP ?= $(BIN)/python -m pip
TORCH_INDEX ?=
ARGS ?=
FAST := $(wildcard tests/unit tests/conformance tests/golden tests/architecture tests/security)

.PHONY: demo test test-all check bench soak fuzz explore clean

demo: $(VENV)/.installed
	@$(BIN)/fedmq demo $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" $(FAST)

bench: $(VENV)/.installed
	$(BIN)/python tests/bench/round_overhead.py $(ARGS)

# Ten minutes in which clients, coordinator and broker are killed a hundred times; then the proof that nothing was lost
soak: $(VENV)/.installed
	@$(BIN)/python tests/faults/soak.py $(ARGS)

# Arbitrary bytes for what reads them, a minute for each target: make fuzz ARGS="envelopes 600"
fuzz: $(VENV)/.installed-dev
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(PIP) install --quiet --editable ".[fuzz]" >&2 || true
	@PYTHONPATH=.:tests $(BIN)/python -m fuzz $(ARGS)

# New examples for every property, thirty times as many as `make test` tries of them
explore: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --hypothesis-profile=explore tests/unit tests/security $(ARGS)

clean:
	rm -rf $(VENV) .fuzz build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	$(install) --editable ".[all]" >&2
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.made
	$(install) --editable ".[all,dev]" >&2
	@touch $(VENV)/.installed $@

$(VENV)/.made:
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# torch without CUDA goes first, so that pip finds the requirement fulfilled afterwards. The variable replaces any
# extra index of pip's own configuration: the newest version of all indexes would win, and that may be one with CUDA.
# Standard output stays the command's own: `make demo ARGS=--json` is JSON Lines and nothing else.
define install
	@echo "installing into $(VENV); the first time this takes minutes and some gigabytes" >&2
	$(if $(TORCH_INDEX),@PIP_EXTRA_INDEX_URL=$(TORCH_INDEX) $(PIP) install --index-url $(TORCH_INDEX) torch torchvision >&2)
	@$(PIP) install
endef
