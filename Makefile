# Needs make and Python 3.11 or newer; everything else is installed into .venv, but for the browser of the tests.

PYTHON ?= python3
BIN := .venv/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
DEVELOP := .venv/installed-test,lint,docs
# One process more than processors: many tests wait for programs and browsers.
PROCESSES = $(shell $(PYTHON) -c 'import os; print(1 + os.cpu_count())')
PYTEST = -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder
# Tests start many programs, each of which would otherwise compile the package's source.
test test-slow test-lowest: export PYTHONDONTWRITEBYTECODE =
# Bytecode is made on all processors; pip makes it on one.
define install
$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '$(1)'
$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
endef

.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-lowest browser fuzz calibrate soak lint docs audit bench lock recorded dist clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

demo: .venv/installed-package  ## map made-up lesions in a made-up connectome, into demo/out
	$(BIN)/python -m bids_lacuna.demo demo
	$(BIN)/bids-lacuna-connectome build demo/connectome demo/store --space MNI152NLin6Asym --name synthetic
	$(BIN)/python run.py demo/bids demo/out participant --connectome demo/store --t-threshold 7
	$(BIN)/python run.py demo/bids demo/out group
	@echo "Open demo/out/sub-01.html in a browser, the others beside it, and demo/out/group.html."
	@echo "The maps are in demo/out/sub-*, and what became of each lesion in demo/out/logs/*/lesions.tsv."
	@echo "Lesions and connectome are SYNTHETIC: see demo/bids/README."

test: $(DEVELOP) browser  ## run the tests, and measure how much of the program they reach
	$(BIN)/python $(PYTEST) --cov --cov-report=term

test-slow: $(DEVELOP)  ## run the few tests that take long each: kills, clusters and memory
	$(BIN)/python $(PYTEST) -m slow --timeout 300

fuzz: $(DEVELOP)  ## read damaged files and caches for five minutes: they may raise only our own errors
	$(BIN)/python tests/fuzz.py

test-lowest: .venv/installed-release  ## run the tests on the oldest dependencies that pyproject.toml admits
	$(BIN)/uv venv --quiet --clear --python 3.11 .venv/lowest
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv/lowest/bin/python --resolution lowest-direct --editable '.[test]'
	.venv/lowest/bin/python $(PYTEST)

browser:  ## install Chromium, which the tests of the pages drive, where there is none and apt is
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { command -v apt-get >/dev/null && $(SUDO) apt-get update -qq && \
	    $(SUDO) apt-get install -qq -y --no-install-recommends chromium; }

lint: $(DEVELOP)  ## check style, types, the direction of imports, and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: $(DEVELOP)  ## build the documentation into build/docs, with warnings as errors
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -d build/doctrees docs build/docs

bench: .venv/installed-bench  ## measure speed and memory against the goals, in about 15 minutes
	$(BIN)/python -m benchmarks.run

calibrate: $(DEVELOP)  ## measure the error rates of the group's tests on LESIONS=DATASET and CONNECTOME=STORE, in half an hour
	$(BIN)/python -m benchmarks.calibration '$(LESIONS)' '$(CONNECTOME)'
	$(BIN)/python -m benchmarks.calibrate_tests '$(LESIONS)' '$(CONNECTOME)'

soak: $(DEVELOP)  ## end the program 20 times by signals and compare what it ends with, in at most 10 minutes
	$(BIN)/python tests/soak.py

audit: .venv/installed-audit  ## look for known vulnerabilities in the dependencies, and for risky code
	$(BIN)/pip-audit --require-hashes --disable-pip --requirement requirements.lock
	$(BIN)/bandit --quiet --recursive bids_lacuna

lock: .venv/installed-release  ## choose anew the versions of the dependencies in requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	  --custom-compile-command "make lock" --extra distributed pyproject.toml --output-file requirements.lock

recorded:  ## write anew what is recorded of the program: boutiques.json and tests/expected_outputs.txt
	rm -rf demo
	$(MAKE) demo
	$(BIN)/python run.py --bids-exec-spec > boutiques.json
	.ci/outputs demo/out > tests/expected_outputs.txt

dist: .venv/installed-release  ## build the sdist and the wheel into dist, and inspect them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

clean:  ## remove all that these targets made
	rm -rf .venv demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*

.venv/installed-package: pyproject.toml | $(BIN)/pip
	@echo "Installing bids_lacuna into .venv; this takes a minute or two."
	$(call install,.)
	@touch $@

.venv/installed-%: pyproject.toml | $(BIN)/pip
	@echo "Installing bids_lacuna and what $* needs into .venv; this takes a minute or two."
	$(call install,.[$*])
	@touch $@

# pip, not python: where venv lacks ensurepip it fails and leaves a python behind.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "bids_lacuna needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1):" \
	    "name another one, as in 'make demo PYTHON=python3.13'." >&2; exit 1; }
	$(PYTHON) -m venv .venv
