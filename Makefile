PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

DATA ?= data
HOURS ?= 2
WORKERS ?= 2
LARGE ?=

MOMENTS ?= 200
FILES ?= 200
CASES ?=
SEED ?= 0

.PHONY: demo test test-slow test-lowest faults docs studies lock install clean

# The main job on the demonstration corpus; results in out/demo/.
demo: install
	$(BIN)/retrodistill demo --out out/demo

# Linter, types and tests; no network beyond installation. Types are checked while the first tests run.
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & types=$$!; \
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup -m "not slow"; tests=$$?; \
	wait $$types && exit $$tests

# The other tests: whole recipes, the code of every page, several processes; those of faults are `make faults`.
test-slow: install
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup -m slow --ignore tests/faults

# Tests that need no training, with the lowest versions of the dependencies that pyproject.toml allows.
test-lowest:
	.ci/lowest

# The long part of tests/faults: kills, refusals and signals at MOMENTS of all jobs, FILES that are damaged, and all
# hostile cases. It prints what docs/guides/reliability.md says of the last run.
faults: install
	HF_HUB_OFFLINE=1 FAULTS_MOMENTS=$(MOMENTS) FAULTS_FILES=$(FILES) FAULTS_CASES=$(CASES) FAULTS_SEED=$(SEED) \
	  $(BIN)/pytest tests/faults
	HF_HUB_OFFLINE=1 $(BIN)/pytest --hypothesis-profile=long tests/data/test_reader_properties.py \
	  tests/runs/test_run_properties.py tests/serving/test_request_properties.py

# The documentation site in out/site/; a warning, such as a link that leads nowhere, is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo out/site/index.html

# The studies of evaluation/studies on the collections in $(DATA), for two hours; again, it takes up where it stopped.
# LARGE=1 for their larger settings, which are for a GPU.
studies: install
	$(BIN)/python evaluation/studies/run.py --data $(DATA) --hours $(HOURS) $(if $(LARGE),--large)

# Versions and digests of all dependencies, those of graphics cards among them, for every system: requirements.lock.
lock:
	$(PYTHON) -m venv out/lock
	out/lock/bin/python -m pip install --quiet uv
	{ sed '/^[^#]/,$$d' requirements.lock; out/lock/bin/uv pip compile pyproject.toml --extra demo --extra docs \
	  --extra test --constraint constraints.txt --universal --python-version 3.11.5 --generate-hashes --no-header \
	  --no-annotate --quiet; } > out/requirements.lock
	mv out/requirements.lock requirements.lock

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("retrodistill needs Python 3.11 or newer: make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,docs,test]'
	touch $@

clean:
	rm -rf .venv out
