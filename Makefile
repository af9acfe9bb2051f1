# Two commands for a newcomer: `make demo` and `make test`. One for a contributor: `make check`, which is what CI runs.
# Everything is installed into .venv; a stamp file per set of extras keeps a second call from installing again.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
CODE   := src tests tools examples

# One thread per process: the tests run in $(JOBS) processes and the models are tiny.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

# With LOCKED=1 the packages are those of requirements/ci.txt, by their hashes; without it the newest that fit.
# The lock file is for every platform: each package has the hashes of all its wheels.
LOCK    := requirements/ci.txt
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED  ?=
comma   := ,
# $(call install,EXTRA,ANOTHER): the package itself, editable, with what one or two extras need.
install = $(if $(LOCKED),$(PIP) --require-hashes --requirement $(LOCK) && $(PIP) --no-deps --no-build-isolation \
	--editable .,$(PIP) --editable '.[$(1)$(if $(2),$(comma)$(2))]')

# Tools for what we depend on live in an environment of their own, so that they are no part of what they look at.
TOOLS   := $(VENV)/tools
LOCK_FLAGS := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --no-header

.PHONY: help demo demo-dense test check format lint types imports docs docs-check docs-site spelling slow cells matrix lock audit sbom package clean
.DEFAULT_GOAL := help

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(call install,bench)
	@touch $@

$(VENV)/.dense: pyproject.toml | $(BIN)/python
	$(call install,bench,dense)
	@touch $@ $(VENV)/.demo

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(call install,test)
	@touch $@ $(VENV)/.demo $(VENV)/.dense

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(call install,dev)
	@touch $@ $(VENV)/.demo $(VENV)/.test

demo: $(VENV)/.demo  ## train a linear probe and three methods on digits, compare, predict, write a page
	$(BIN)/vpeft demo --out runs/demo

demo-dense: $(VENV)/.dense  ## find things in pictures: a frozen backbone and two methods, boxes and masks drawn
	$(BIN)/vpeft demo --task detection --out runs/demo-dense

test: $(VENV)/.test  ## the fast tests
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -q -m "not slow and not cells and not gpu" -p no:cacheprovider

check: $(VENV)/.dev lint imports types spelling docs-check test  ## everything CI runs after the demo

lint: $(VENV)/.dev
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports --no-cache

spelling: $(VENV)/.dev
	$(BIN)/codespell $(CODE) docs README.md CONTRIBUTING.md CHANGELOG.md Makefile pyproject.toml

docs-check: $(VENV)/.dev
	$(BIN)/python tools/docs.py --check
	$(TEST_ENV) $(BIN)/python tools/method_pages.py --check
	$(TEST_ENV) $(BIN)/python tools/pocket_page.py --check
	$(TEST_ENV) $(BIN)/python tools/pocket_dense_page.py --check
	$(TEST_ENV) $(BIN)/python tools/counts.py --check
	PYTHONPATH=src:. $(BIN)/python -m tests.contract.matrix --check docs/coverage.md

slow: $(VENV)/.dev  ## the slow tests: examples, killed processes, two processes, whole-graph compilation
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -q -m "slow and not gpu" -p no:cacheprovider
	VPEFT_EXAMPLES=1000 $(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -q -p no:cacheprovider tests/hostile/test_properties.py

cells: $(VENV)/.dev  ## every method (or ONLY=name) on every task: hours
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) -q -m "cells and not gpu" -k "$(ONLY)" -p no:cacheprovider tests/contract

# With MISSING=1 the cells run that docs/coverage.md lacks: those of new methods and families.
matrix: $(VENV)/.dev  ## run the contract on every method (or ONLY=name) and family and write docs/coverage.md
	$(TEST_ENV) PYTHONPATH=src:. $(BIN)/python -m tests.contract.matrix --write docs/coverage.md --workers $(JOBS) \
		--keep runs/matrix.jsonl --only "$(ONLY)" $(if $(MISSING),--missing)

# The properties of the methods come first: docs.py writes tables of them.
docs: $(VENV)/.dev  ## write the generated tables and snippets of docs/ and README.md anew
	$(TEST_ENV) $(BIN)/python tools/method_pages.py
	$(BIN)/python tools/docs.py
	$(TEST_ENV) $(BIN)/python tools/pocket_page.py
	$(TEST_ENV) $(BIN)/python tools/pocket_dense_page.py
	$(TEST_ENV) $(BIN)/python tools/counts.py

docs-site: $(VENV)/.dev  ## build the documentation site into build/site and check its links
	$(TEST_ENV) NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python tools/site_check.py build/site

format: $(VENV)/.dev  ## format the code
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

$(TOOLS)/.done: requirements/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

lock: $(TOOLS)/.done  ## write requirements/*.txt anew: the newest versions that fit, for all platforms, with hashes
	$(TOOLS)/bin/uv pip compile pyproject.toml --extra dev $(LOCK_FLAGS) --output-file $(LOCK)
	$(TOOLS)/bin/uv pip compile requirements/tools.in $(LOCK_FLAGS) --output-file requirements/tools.txt

audit: $(TOOLS)/.done  ## ask whether the locked packages have known vulnerabilities (needs the network)
	$(TOOLS)/bin/python tools/audit.py $(TOOLS)/bin/pip-audit $(LOCK)

sbom: $(TOOLS)/.done $(VENV)/.demo  ## write build/sbom.json: a bill of materials (CycloneDX) of what is installed
	@mkdir -p build
	$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --mc-type library \
		--output-reproducible --output-file build/sbom.json

package: $(TOOLS)/.done  ## build the wheel and the archive of the sources into dist/ and check them
	rm -rf dist
	$(TOOLS)/bin/python -m build --no-isolation --outdir dist .
	$(TOOLS)/bin/twine check --strict dist/*
	$(TOOLS)/bin/check-wheel-contents dist/*.whl

clean:  ## remove the environment, the caches and the demo's runs
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache build dist
