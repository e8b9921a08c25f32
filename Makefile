# make demo and make test: the README's two commands. Both set up .venv first, build the wheel and
# install it there, so that whatever runs, runs the package as a user gets it.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find genesis -name '*.py' -o -name py.typed) README.md LICENSE
# The floor of the coverage holds for the whole suite, not for a part of it.
COVERAGE ?= --cov --cov-report=term $(if $(ARGS),--cov-fail-under=0)
ARGS ?=
QUICK := tests/test_layers.py tests/test_surface.py tests/test_fs.py tests/test_format.py \
	tests/test_numpy_objects.py tests/test_objects.py tests/versions tests/attacks/test_planted.py

.PHONY: demo test check docs versions outside lint format bench torture clean

demo: .venv/installed
	$(BIN)/python examples/demo.py $(ARGS)

test: .venv/installed
	$(BIN)/pytest $(COVERAGE) $(ARGS)

# Before each commit: lint, types, and the tests that take no more than a minute together.
check: lint
	$(BIN)/pytest -q -x $(QUICK) $(ARGS)

# The documentation site, into site/. A warning is an error: a link that leads nowhere, say.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --clean

# The whole matrix of tests/versions/matrix.py; downloads some 20 GB the first time.
versions: .venv/installed
	PYTHONPATH=tests $(BIN)/python -m versions $(ARGS)

# The tests that other projects ship of pickling, through genesis; half an hour.
outside: .venv/outside
	$(BIN)/python tests/outside/suites.py $(ARGS)

torture: .venv/installed
	$(BIN)/pytest -m torture $(ARGS)

bench: .venv/bench
	$(BIN)/python bench/run.py $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/venv:
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed: .venv/venv pyproject.toml constraints.txt $(SOURCES)
	$(BIN)/pip install -q -c constraints.txt hatchling
	rm -rf dist
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w dist .
	$(BIN)/pip install -q --no-deps --force-reinstall dist/*.whl
	$(BIN)/pip install -q -c constraints.txt "$$(echo dist/*.whl)[dev]"
	touch $@

.venv/bench: .venv/installed
	$(BIN)/pip install -q -c constraints.txt "$$(echo dist/*.whl)[bench]"
	touch $@

.venv/docs: .venv/installed
	$(BIN)/pip install -q -c constraints.txt "$$(echo dist/*.whl)[docs]"
	touch $@

.venv/outside: .venv/installed
	$(BIN)/pip install -q -c constraints.txt "$$(echo dist/*.whl)[outside]"
	touch $@

clean:
	rm -rf .venv .versions dist build site .demo-* .coverage .hypothesis .mypy_cache .ruff_cache
