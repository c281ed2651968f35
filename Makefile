# Two commands: `make workbook` and `make test`. Needs Python 3.11 or newer, make and git; everything else goes into .venv.
PYTHON ?= python3
SIZE ?= laptop
COHORT ?=
SEED ?= 0
MODEL_DIR ?=
SOURCE ?=
export OMP_WAIT_POLICY = passive
export LGEKIT_CACHE ?= $(CURDIR)/papermill_runs/.cache
BIN := .venv/bin

.PHONY: workbook test test-slow test-browser setup site lab app figures tables bench weights wheel audit lint clean help

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: .venv/installed     ## create the environment in .venv, with .venv/bin/lgekit

.venv/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lgekit needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv || { echo "no venv module: on Debian, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

workbook: setup  ## run notebooks 00-08 in order (SIZE=smoke|laptop|paper COHORT=SPEC SEED=0)
	$(BIN)/lgekit workbook --size $(SIZE) --seed $(SEED) $(if $(COHORT),--cohort "$(COHORT)")

figures: setup   ## redraw figures/ from their CSV files, or renew them (SOURCE=papermill_runs/workbook/figures)
	$(BIN)/lgekit figures $(if $(SOURCE),--source "$(SOURCE)")

tables: setup    ## fill the tables of README.md and the site from their CSV files
	$(BIN)/python notebooks/site/fill_tables.py

site: setup      ## the workbook as a web site, in _site/ (nothing is fetched, every link is checked)
	$(BIN)/python notebooks/site/build_site.py

lab: setup       ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir notebooks

# voila.json in notebooks/apps: a token, localhost alone, no fonts from another server, idle kernels end
app: setup       ## scar painter and prompt playground without code (MODEL_DIR=folder of `lgekit fit`, COHORT=SPEC)
	@test -z "$(MODEL_DIR)" || test -f "$(MODEL_DIR)/detector.json" || \
		{ echo "MODEL_DIR=$(MODEL_DIR) was not written by \`lgekit fit\`: it has no detector.json"; exit 1; }
	MODEL_DIR=$(abspath $(MODEL_DIR)) COHORT="$(COHORT)" $(BIN)/voila notebooks/apps --Voila.config_file_paths=notebooks/apps

lint: setup      ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy lgekit

test: lint       ## lint, types and all quick tests, with a smoke run of all notebooks
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not browser and not bench" -n 2 --dist loadfile

test-slow: setup ## the slow tests, on one thread: rounding depends on their number
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

test-browser: setup  ## JupyterLab and the apps in Chromium; screenshots in papermill_runs/browser/
	$(BIN)/pytest -m browser -s

bench: setup     ## the benchmark table, into figures/bench.csv
	$(BIN)/pytest tests/benchmarks -m bench --bench-table figures/bench.csv

weights: setup   ## train the heart network and the detector in the package again (8 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m lgekit.builtin

wheel: setup     ## build dist/lgekit-*.whl, and predict with it in a fresh environment
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	WHEEL=$$(echo $(CURDIR)/dist/*.whl) $(BIN)/pytest tests/test_wheel.py -m slow -s

audit: setup     ## known vulnerabilities of the locked packages; says so where the database cannot be reached
	@$(PYTHON) -c 'import urllib.request as u; u.urlopen("https://pypi.org/pypi/pip/26.0/json", timeout=20)' 2>/dev/null || \
		{ echo "audit skipped: the vulnerability database at pypi.org cannot be reached"; exit 0; } && \
	$(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet pip-audit && \
		build/audit/bin/pip-audit --require-hashes --disable-pip -r requirements.lock

clean:           ## remove the environment, the runs and the caches; grids, figures and notebooks stay
	rm -rf .venv _site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find papermill_runs -mindepth 1 -maxdepth 1 ! -name grids -exec rm -rf {} +
	find . -name __pycache__ -prune -exec rm -rf {} +
