# Sets fedward up in .venv, runs it, tests it, checks it. Needs Python 3.11+ with venv; no activation.

BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help setup simulate test test-processes test-long mutants check lock wheelhouse clean

help:
	@echo 'make setup      install fedward and its tools into .venv (once)'
	@echo 'make simulate   run the quick study and say where its report is'
	@echo 'make test       run the tests but those of make test-processes (10 min on two cores)'
	@echo 'make test-processes  tests that run, kill and cut off servers and sites; mutants'
	@echo 'make test-long  run the long tests too, then make mutants (hours)'
	@echo 'make mutants    change what guards privacy in thousands of ways; do the tests notice?'
	@echo 'make check      style, types, arrows between packages, bundle, licences'
	@echo 'make lock       rewrite requirements.lock after a change of dependencies in pyproject.toml'
	@echo 'make wheelhouse  all that is installed, with hashes and an SBOM, in dist/wheelhouse (3 GB)'
	@echo 'make clean      remove .venv and caches'

setup: $(READY)

# The lock pins everything with hashes, the build backend included: nothing else is downloaded.
$(READY): requirements.lock pyproject.toml
	@python=$$(for candidate in python3 python3.13 python3.12 python3.11; do \
		"$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
			2>/dev/null && echo "$$candidate" && break; \
	done); \
	if [ -z "$$python" ]; then \
		echo 'fedward needs Python 3.11 or newer with its venv module, and found none on PATH:' \
			'install one (on Debian: apt-get install python3 python3-venv).' >&2; \
		exit 1; \
	fi; \
	echo "Setting up .venv with $$("$$python" --version)." \
		'The first time downloads about 3.2 GB (torch with CUDA, which also runs on a CPU) and takes 6 GB on disk.'; \
	"$$python" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check --disable-pip-version-check
	@touch $@

simulate: setup
	$(BIN)/fedward simulate quick

# Servers and sites as processes of their own, killed and cut off; whole commands of the README and
# the runbook; the named mutants.
PROCESSES := tests/chaos tests/deploy tests/mutants tests/test_federation_grpc.py \
	tests/test_readme_federation.py
# Alone: Flower gives a process that it starts for a message 30 s to report.
STOCK := tests/test_stock_flower.py

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PROCESSES:%=--ignore=%) --ignore=$(STOCK)

test-processes: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PROCESSES)
	$(BIN)/python -m pytest $(STOCK)

test-long: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --timeout 7200 -m 'long or not long'
	$(MAKE) mutants

mutants: setup
	$(BIN)/python tests/mutants/mutmut_run.py

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_bundle.py tests/test_doors.py tests/test_licences.py

# Keeps what is pinned; remove requirements.lock first to take the newest of everything.
# uv comes with Flower.
lock:
	@test -x $(BIN)/uv || $(MAKE) setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --only-binary :all: \
		--generate-hashes --no-annotate --no-header --no-emit-index-url \
		--quiet --output-file requirements.lock

# Anew each time, so that nothing old stays in it.
wheelhouse: setup
	rm -rf dist/wheelhouse
	$(BIN)/python deploy/wheelhouse.py dist/wheelhouse

clean:
	rm -rf .venv .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
