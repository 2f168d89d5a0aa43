# Every target does its own set-up: on a fresh machine `make demo` or `make test` is all there is to type.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install browser demo test test-all check bench proofs clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and pinned: unpinned it would bring gigabytes of CUDA where a CPU build is at hand.
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train,dev]"
	@touch $(INSTALLED)

demo: install  ## train an innocent-looking config, find what is wrong, fix it, prove it
	$(BIN)/python examples/quickstart/demo.py

# The report's tests open it in a real browser.
browser:
	@command -v chromium >/dev/null \
		|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
			&& apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
		|| echo "Chromium is missing, and the report's tests need it: sudo apt-get install chromium"

# A process of tests for each core, each with one thread: two that share two cores would wait for each other.
test test-all: export OMP_NUM_THREADS := 1

test: install browser  ## everything but the slow tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" -q

test-all: install browser  ## also long runs, every case of every rule, and property tests with more examples
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -n 2 --dist worksteal -q

check: install  ## lint, types, layers, rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/trainscope rules validate

bench: install browser  ## what things cost beside what people use instead; an hour, on an idle machine
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/writer.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/report.py

proofs: install  ## rerun every proof and record what it measured in rules/proofs.json
	$(BIN)/trainscope rules test --record

clean:
	rm -rf $(VENV) .cache demo
