# make run    serve on 127.0.0.1:8000 with a Redis server of its own, until Ctrl-C
# make test   the whole test suite
# make coverage  the same, with branch coverage: slower
# make check  lint, format and types
# make load   seed, wrk, Locust and throughput, small: var/load/report.html (< 2 minutes)
# make bench  what a check costs, beside other servers (needs wrk)

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test coverage check load bench clean

run: .venv/run
	@$(BIN)/python -m scripts.run

test: .venv/test
	$(BIN)/python -m pytest

coverage: .venv/test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

load: .venv/load
	$(BIN)/python -m scripts.load

bench: .venv/test
	$(BIN)/python -m scripts.bench --connections 64 256

clean:
	rm -rf .venv var .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache

# A stamp each, so that `make run` installs no test tools.
.venv/run: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[server]'
	@touch $@

.venv/load: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[server,load]'
	@touch $@ .venv/run

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ .venv/run .venv/load
