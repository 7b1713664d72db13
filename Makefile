# Two commands: `make demo` and `make test`. Each sets up all it needs in .venv, with Python and pip alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format lock clean
.DELETE_ON_ERROR:

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

demo: $(READY)  ## the whole chain on a built-in catalogue: make demo ARGS="--dataset my/music"
	$(BIN)/sat demo $(ARGS)

# oneDNN computes some strided convolutions in bfloat16 wrongly with AMX (seen with torch 2.13), so tests do without
test: $(READY)  ## lint, types, layers and all tests: make test ARGS="-k dedup"
	ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock: $(READY)  ## write what is installed as the new lock
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/^torch==\([0-9.]*\).*/torch==\1/' > requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
