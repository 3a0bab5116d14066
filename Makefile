# make demo    the main job, shown in a temporary folder
# make test    all tests; as root also those that make users and start real services
# make unit    the tests that need neither root nor services
# make check   ruff, mypy, import-linter, unit tests: a minute or two
# make fuzz    every parser of a peer's bytes, FUZZ_SECONDS (30) each; FUZZ="NAME ..." for some
# make clean   removes what these make, also the Debian 13 that tests boot: the next one is of that day's packages

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
FUZZ_SECONDS ?= 30
FUZZ ?=

.PHONY: demo test unit check lint fuzz clean

demo: $(VENV)/.installed
	@$(BIN)/sockguard demo

test: unit
	@$(BIN)/python -m pytest -q tests/integration tests/system $(PYTEST_ARGS)

unit: $(VENV)/.tested
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit $(PYTEST_ARGS)

check: lint unit

lint: $(VENV)/.tested
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Guided by coverage where atheris can be had; it has no wheel for every Python, and goes without it too.
fuzz: $(VENV)/.tested
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(BIN)/pip install --quiet --disable-pip-version-check atheris || true
	@$(BIN)/python -m tests.fuzz $(FUZZ_SECONDS) $(FUZZ)

# Debian ships Python without ensurepip: root installs it, others are told the one line.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'sockguard needs Python 3.11 or later; name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -y -qq python3-venv; \
		else \
			echo 'Python has no venv here. Run as root: apt-get install python3-venv' >&2; exit 1; \
		fi; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/pip pyproject.toml
	@$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) .debian-13 *.egg-info build dist
