# `make demo` and `make test` on a fresh machine: both make $(VENV) first. Only Python 3.11 or later and pip are needed.
#   PYTHON=python3.12   the interpreter to build the environment from
#   VENV=path           where the environment lies
#   WORKERS=4           how many test processes run at once; FAULT_WORKERS those of `make faults`, which often wait
#   EXTRAS=…,ray        what is installed; with ray, the tests of fleets on a Ray cluster run, too

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 >/dev/null 2>&1 && python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
WORKERS ?= 2
FAULT_WORKERS ?= 3

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS ?= testbed,export,dev
RUN_DIR ?= runs

# uv, where it is installed, is only a speed-up. It does not read pip's list of local wheels by itself.
ifneq ($(strip $(PIP_FIND_LINKS)),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
# Two test workers on two cores leave one thread to each.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check format bench faults soak clean install

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name another one: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) -m venv failed; on Debian and Ubuntu it needs the package python3-venv"; exit 1; }
	@if command -v uv >/dev/null 2>&1 && uv pip install --python $(BIN)/python -e '.[$(EXTRAS)]'; then :; \
		else $(BIN)/python -m pip install -e '.[$(EXTRAS)]'; fi
	@touch $@

demo: $(STAMP)
	@$(BIN)/fedpruneshare data get hapt || \
		echo "The full hapt recordings cannot be had here: the demo runs on the small sample that ships with the project."
	@$(BIN)/fedpruneshare testbed run demo --replace --out $(RUN_DIR)/demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not soak and not faults' tests

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/test_house_rules.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/fedpruneshare bench rounds --json $(RUN_DIR)/bench-rounds.json
	$(BIN)/fedpruneshare bench rounds --devices 100,300,1000,3000 --json $(RUN_DIR)/bench-crowd.json
	$(BIN)/fedpruneshare bench sharing --json $(RUN_DIR)/bench-sharing.json
	$(BIN)/fedpruneshare bench width --json $(RUN_DIR)/bench-width.json
	$(BIN)/fedpruneshare bench memory --json $(RUN_DIR)/bench-memory.json

# The fault plan F01 to F15 (docs/faults.md): at most 12 minutes on two cores.
faults: $(STAMP)
	$(BIN)/python -m pytest -n $(FAULT_WORKERS) --dist worksteal -m 'faults and not soak' tests

soak: $(STAMP)
	$(BIN)/python -m pytest -s -m soak tests

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
