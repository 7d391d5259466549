# Every target makes its own virtual environment in .venv first; nothing else is needed but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := platform jobs workers memory
FORMATTED := $(SOURCES) tests benchmarks

.PHONY: demo demo-shared test test-long check format bench clean

# The main job: train a small Swin on real handwritten digits through CLI, server and Ray, then stop everything again.
demo: .venv/.installed
	@export DOVETAIL_HOME="$(CURDIR)/.demo"; begin=$$(date +%s); \
	$(BIN)/dovetail submit --follow jobs/examples/swin-digits.yaml; code=$$?; \
	$(BIN)/dovetail down; \
	echo "the demo took $$(( $$(date +%s) - begin )) s; its files stay in .demo (make clean removes them)"; \
	exit $$code

# Three jobs share one CPU device that has half the memory they would take; compared with each of them alone.
demo-shared: .venv/.installed
	@$(BIN)/python benchmarks/demo_shared.py; code=$$?; \
	echo "its files stay in .demo-shared (make clean removes them)"; \
	exit $$code

# The first part runs in two processes of one thread each, and either takes tests from the other when it has none left.
test: .venv/.installed-dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long and not ray" --durations=10 -n 2 --dist worksteal
	@$(BIN)/python -m pytest -m "ray and not long" --durations=10

test-long: .venv/.installed-dev
	@$(BIN)/python -m pytest -m long --durations=10

check: .venv/.installed-dev
	$(BIN)/ruff format --check $(FORMATTED)
	$(BIN)/ruff check $(FORMATTED)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed-dev
	$(BIN)/ruff check --fix-only -q $(FORMATTED)
	$(BIN)/ruff format $(FORMATTED)

bench: .venv/.installed-dev
	$(BIN)/python benchmarks/cli_cold_start.py
	$(BIN)/python benchmarks/loop_overhead.py
	$(BIN)/python benchmarks/start_latency.py
	$(BIN)/python benchmarks/memory_forecast.py

clean:
	rm -rf .demo .demo-shared .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "dovetail needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install -q -e .
	@touch $@

.venv/.installed-dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch .venv/.installed $@
