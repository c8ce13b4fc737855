# The two commands of the README are `make demo` and `make test`; both need only Python >= 3.11.
# They build .venv from requirements.lock on first use, in about half a minute.

PYTHON ?= python3
WORKERS ?= 2
# How tests compile: `fast`, or `full` as a user's run does, which takes half as long again.
COMPILE ?= fast
PY := .venv/bin/python
# A file's tests run in one process: they share what they compile.
TESTS = DSJAX_TESTS_COMPILE=$(COMPILE) $(PY) -m pytest -n $(WORKERS) --dist loadfile

# pip leaves compiling to the first import, which then needs to be allowed to keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-all check lint types bench docs lock clean

help:
	@echo "make demo       train a small DeepSeek-V3 on Shakespeare and let it speak (5 minutes)"
	@echo "make test       the tests, on WORKERS=$(WORKERS) processes; COMPILE=full compiles as users do"
	@echo "make test-fast  all tests but those marked slow"
	@echo "make test-all   every combination of what make test samples, too"
	@echo "make check      ruff and mypy"
	@echo "make bench      training and decoding speed of this machine"
	@echo "make docs       pages and reference as a site in build/site, links checked"
	@echo "make lock       pin the newest dependencies in requirements.lock (needs uv)"
	@echo "make clean      remove .venv and the caches"
	@echo "PYTHON=python3.12 picks the Python that .venv is made with."

demo: .venv/ready
	$(PY) -m dsjax demo

test: .venv/ready
	$(TESTS)

test-fast: .venv/ready
	$(TESTS) -m "not slow and not exhaustive"

test-all: COMPILE = full
test-all: .venv/ready
	$(TESTS) -m "exhaustive or not exhaustive"

check: lint types

lint: .venv/ready
	$(PY) -m ruff check

types: .venv/ready
	$(PY) -m mypy

bench: .venv/ready
	$(PY) -m dsjax bench train --shape tiny
	$(PY) -m dsjax bench decode --shape tiny

# Warnings are errors, and a link that leads nowhere is one.
docs: .venv/docs
	$(PY) -m sphinx -W --keep-going -q -b html -c docs . build/site
	@cp build/site/README.html build/site/index.html
	@echo "build/site/index.html"

.venv/docs: .venv/ready pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[docs]"
	@touch $@

.venv/ready: requirements.lock
	@$(PYTHON) -c 'import sys; old = sys.version_info < (3, 11); sys.exit(old and "dsjax needs Python 3.11 or newer, and $(PYTHON) is %d.%d: name a newer one, as in make PYTHON=python3.12" % sys.version_info[:2] or 0)'
	@echo "Making .venv and installing what requirements.lock pins (about half a minute)"
	@$(PYTHON) -m venv --clear .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --no-build-isolation -e .
	@touch $@

lock:
	uv pip compile --universal --python-version 3.11 --fork-strategy fewest --upgrade \
	  --no-emit-index-url --annotation-style line --custom-compile-command "make lock" \
	  --extra audit --extra dev --extra evaluate --extra serve pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
