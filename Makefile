# make relay   set everything up and run a relay on 127.0.0.1 (TLS=1: with a self-signed certificate)
# make test    set everything up and run the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS := .peers/bin
GO_VERSION_OF_PEERS := v1.102.3

# make relay TLS=1 ARGS='--log-level=debug'
TLS ?=
ARGS ?=
# make test PYTEST_ARGS='tests/relay -x' WORKERS=0
PYTEST_ARGS ?=
# Processes that share the tests, 0: none but pytest's own. Most tests wait, so more than cores.
WORKERS ?= 6
FUZZ_SECONDS ?= 300
# Without its cache every process rewrites all assertions of all tests, which takes 8 s each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help relay test quick test-engines test-all-pythons fast test-fast cover peers peer-ts-derp lint types bench bench-iroh bench-publish fuzz docs requirements clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

relay: $(VENV)/.run ## run a relay on 127.0.0.1:3340; TLS=1: on 8443 with a self-signed certificate
ifeq ($(TLS),)
	$(BIN)/pyderp relay --dev $(ARGS)
else
	$(BIN)/pyderp relay -a 127.0.0.1:8443 --certmode=manual --certdir=.relay --hostname=127.0.0.1 \
	  --http-port=-1 -c .relay/relay.key $(ARGS)
endif

test: $(VENV)/.dev $(VENV)/.docs lint types ## run all checks and tests; tests without their peer are skipped by name
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=20 $(PYTEST_ARGS)
	$(BIN)/python scripts/cover.py mirrors
	VENV=$(VENV) WORKERS=$(WORKERS) scripts/other-pythons

# Neither the real peers nor whole programs: what is decided, written and read, over fake links.
QUICK_TESTS := tests/wire tests/relay tests/config tests/maps tests/admission tests/client tests/net \
  tests/netcheck tests/wsconn tests/server tests/test_*.py
QUICK_WORKERS ?= 3

quick: $(VENV)/.dev ## run the tests of bytes, decisions and units, on one event loop: a minute
	$(BIN)/ruff check --quiet .
	$(BIN)/python -m pytest -q -n $(QUICK_WORKERS) --dist worksteal --loops=asyncio \
	  -m "not slow" $(QUICK_TESTS) $(PYTEST_ARGS)

# make cover COVER_ARGS=tests/cli: these tests alone, and only the packages of which they run a function
COVER_ARGS ?=

cover: $(VENV)/.dev ## what tests cover: wire and relay by their own test files, then all packages
	$(if $(COVER_ARGS),,$(BIN)/python scripts/cover.py mirrors)
	$(BIN)/python scripts/cover.py suite $(if $(COVER_ARGS),--touched) -- -n $(WORKERS) --dist worksteal $(COVER_ARGS)

# What TLS and packets touch.
ENGINES ?= off on
ENGINE_TESTS := tests/server tests/relay tests/property tests/certs tests/fault/sums tests/interop/front \
  tests/interop/acme tests/interop/test_go_clients.py tests/interop/server tests/test_fuzz.py

test-engines: $(VENV)/.dev ## test TLS and packets without the native part and with it (make fast)
	for native in $(ENGINES); do \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --native=$$native $(ENGINE_TESTS) $(PYTEST_ARGS) || exit; \
	done

fast: $(BIN)/python ## build the native part from fast/ and install it (cargo and a C compiler)
	@command -v cargo >/dev/null || { echo "make fast needs cargo (Rust 1.85 or newer)"; exit 1; }
	@command -v cc >/dev/null || { echo "make fast needs a C compiler"; exit 1; }
	@rm -rf build/fast
	@mkdir -p build/fast
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w build/fast ./fast
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index \
	  --force-reinstall --find-links build/fast pyderp-fast
	@$(BIN)/python -c 'import pyderp_fast as f; print("pyderp-fast", f.VERSION, "is installed")'

# In the profile of the wheel, so that the C part is compiled once.
test-fast: $(VENV)/.dev fast ## test the native part: in Rust, then beside the ssl module
	cd fast && cargo fmt --check && cargo clippy -q --release --all-targets -- -D warnings
	cd fast && cargo test -q --release --no-default-features
	$(BIN)/python -m pytest -n $(WORKERS) fast/tests $(PYTEST_ARGS)

peers: peer-ts-derp ## build and install the real peers that interoperability tests talk to (Go, root on Debian)
	scripts/peers $(GO_VERSION_OF_PEERS) $(PEERS)

peer-ts-derp: ## build the peer on Tailscale's Rust crate (Rust 1.92; skipped without it)
	scripts/peer-ts-derp $(PEERS)

.PHONY: fmt hooks

fmt: $(VENV)/.dev ## format all code and repair what ruff can repair; Rust too, if cargo is there
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .
	@if command -v cargo >/dev/null; then cd fast && cargo fmt; fi

lint: $(VENV)/.dev ## style, imports that go one way only, the changelog and its fragments
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --verbose
	$(BIN)/python scripts/changelog.py --check

types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy

hooks: $(VENV)/.dev ## have git run the quick checks at each commit, and mypy at each push
	$(BIN)/pre-commit install

# make bench QUICK=1; make bench ARGS='--only curve'
QUICK ?=

bench: $(VENV)/.bench ## compare with Go's derper on both engines: an hour, QUICK=1: ten minutes
	$(BIN)/python bench/run.py $(if $(QUICK),--quick) $(ARGS)

IROH_VERSION := 1.4.1
IROH := build/iroh/bin/iroh-relay

bench-iroh: $(VENV)/.bench $(IROH) ## the same beside iroh-relay, which cargo builds first (ten minutes, once)
	$(BIN)/python bench/run.py --iroh $(IROH) $(if $(QUICK),--quick) $(ARGS)

$(IROH):
	@command -v cargo >/dev/null || { echo "make bench-iroh needs cargo"; exit 1; }
	cargo install --quiet --locked --version $(IROH_VERSION) --features server --root build/iroh iroh-relay

bench-publish: $(VENV)/.bench ## make RESULTS.md, README's table and docs from RAW=build/bench/raw-….jsonl
	$(BIN)/python bench/run.py --report $(RAW) --publish

.PHONY: changelog dist

changelog: $(VENV)/.dev ## write the fragments in changelog/ into CHANGELOG.md
	$(BIN)/python scripts/changelog.py

dist: $(VENV)/.dev ## build wheel and sdist into dist/; install each into a fresh environment and run it
	$(BIN)/python scripts/changelog.py --check
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python scripts/check_dist.py --requirements requirements.txt dist/*

fuzz: $(VENV)/.dev ## fuzz each target for FUZZ_SECONDS
	$(BIN)/python fuzz/run.py --seconds $(FUZZ_SECONDS)

docs: $(VENV)/.dev ## check the documentation: links, generated reference
	$(BIN)/python scripts/check_docs.py

.PHONY: site
# What Sphinx warns of is an error: a link that leads nowhere, a page that is in no menu. Without -E it would
# not read again, and so not warn again of, what has not changed.
site: $(VENV)/.docs ## build the site of the documentation into build/site
	@rm -rf build/site
	$(BIN)/sphinx-build -q -E -W --keep-going -d build/site-cache -c docs . build/site
	@echo "build/site/index.html is the start page"

requirements: $(VENV)/.dev ## pin the requirements anew (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --upgrade --extra relay pyproject.toml -o requirements.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --upgrade requirements-build.in -o requirements-build.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --upgrade --extra relay pyproject.toml requirements-dev.in -o requirements-dev.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --upgrade requirements-bench.in -o requirements-bench.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --upgrade requirements-docs.in -o requirements-docs.txt

clean: ## remove the environments and the peers
	rm -rf $(VENV) .venv-* .peers .relay build dist fast/target

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pyderp needs Python 3.11 or newer; try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml requirements.txt requirements-build.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt -r requirements-build.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: pyproject.toml requirements-dev.txt $(VENV)/.run | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

$(VENV)/.bench: requirements-bench.txt | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.txt
	@touch $@

$(VENV)/.docs: requirements-docs.txt | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.txt
	@touch $@
