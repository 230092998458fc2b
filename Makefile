# make run    serve on 127.0.0.1:8000 with a Redis server of its own, until Ctrl-C
# make test   the whole test suite
# make coverage  the same, with branch coverage: slower
# make openapi  schemathesis, every check on, over the OpenAPI document (a minute)
# make browser  the page at /docs in headless Chromium (Debian: chromium, chromium-driver)
# make wheel  build the wheel, install it in an empty environment and see it serve
# make lock   requirements.lock anew
# make check  lint, format and types
# make load   seed, wrk, Locust and throughput, small: var/load/report.html (< 2 minutes)
# make bench  what a check costs, beside other servers (needs wrk)

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test coverage openapi browser wheel lock check load bench clean

run: .venv/run
	@$(BIN)/python -m scripts.run

test: .venv/test
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

coverage: .venv/test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

openapi: .venv/openapi
	$(BIN)/python -m scripts.openapi --max-time 60

browser: .venv/browser
	$(BIN)/python -m pytest tests/test_browser.py

wheel: .venv/wheel
	$(BIN)/python -m scripts.wheel

lock: .venv/wheel
	echo '# The versions that the tests ran with, and the SHA-256 of their files: make lock' >requirements.lock
	$(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-header \
	    --no-annotate --no-emit-find-links --no-emit-index-url --no-emit-trusted-host \
	    --output-file - pyproject.toml >>requirements.lock

check: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

load: .venv/load
	$(BIN)/python -m scripts.load

bench: .venv/test
	$(BIN)/python -m scripts.bench --connections 64 256

clean:
	rm -rf .venv dist var .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .schemathesis

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

.venv/openapi .venv/browser .venv/wheel: .venv/test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(@F)]'
	@touch $@
