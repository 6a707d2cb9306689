# Every target sets up what it needs: the first call creates .venv, later calls find it ready.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PY := $(BIN)/python
STAMP := .venv/.stamp
SWEEP_STAMP := .venv/.stamp-sweep
SITE_STAMP := _build/html/.stamp
BROWSER_STAMP := tools/site_checks/node_modules/.stamp

# The committed notebooks show published records only, whatever else was run here.
PUBLISHED_ONLY := RWSLIB_RESULTS="$(CURDIR)/_build/no-results"

# Two processes of one thread each are faster here than one process of two threads.  tests/conftest.py says
# what comes first.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 300 notebooks

# Tests start many processes, which would all compile the library anew.
unexport PYTHONDONTWRITEBYTECODE

PORT ?= 8000

.DEFAULT_GOAL := help
.PHONY: help setup book pdf rerun sweep reproduce drill drill-slurm test test-elsewhere test-fast lint style types format notebooks serve bench atlas clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install the pinned packages

$(STAMP): requirements.txt constraints.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed, but '$(PYTHON)' is not: name another one, make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(SWEEP_STAMP): $(STAMP) requirements-sweep.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-sweep.txt
	@touch $@

$(BROWSER_STAMP): tools/site_checks/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix $(<D) --silent --no-audit --no-fund && touch $@; \
	else echo "There is no npm: the tests that look at the pages in a browser will be skipped." >&2; fi

SOURCES := $(shell find book notebooks rwslib tools -type f -not -path '*/.*' -not -path '*/__pycache__/*' \
	-not -path '*/node_modules/*')

# For the tests, which execute the notebooks themselves and compare: the pages show the outputs that are stored.
# Built anew only when something that it is made from has changed; `make book` always builds, and executes.
$(SITE_STAMP): $(STAMP) _config.yml $(SOURCES)
	$(PY) tools/build_book.py --stored
	@touch $@

book: $(STAMP)  ## build the book into _build/html (SCALE=quick trains everything live, PARAMS=my.yaml changes parameters)
	$(PY) tools/build_book.py $(if $(SCALE),--scale $(SCALE)) $(if $(PARAMS),--params "$(PARAMS)")
	@touch $(SITE_STAMP)

pdf: book  ## build the book and print all of it into _build/book.pdf (needs Chromium)
	$(PY) tools/make_pdf.py

rerun: $(STAMP)  ## run one notebook with other parameters (NOTEBOOK=02_gmm ARGS="-p num_runs 3")
	$(PY) -m rwslib run "$(NOTEBOOK)" $(ARGS)

sweep: $(SWEEP_STAMP)  ## train and execute what grids ask for (GRID=workflow/grids/figure4.yaml ARGS="--cores 4")
	$(PY) -m rwslib sweep $(GRID) $(ARGS)

# From an empty store of its own; what is in it is not done again.
REPRODUCED := $(CURDIR)/results/reproduce-$(or $(SCALE),quick)
PAPER_GRIDS := figure4 figure2-table1 figure1 figure1-earlier
GRIDS := $(if $(filter paper,$(SCALE)),$(PAPER_GRIDS)) reproduce-$(or $(SCALE),quick)
reproduce: $(SWEEP_STAMP)  ## train all experiments from nothing, then make their figures (SCALE=quick or paper)
	RWSLIB_PUBLISHED="$(REPRODUCED)/none" $(PY) -m rwslib sweep $(GRIDS:%=workflow/grids/%.yaml) \
		--results-dir "$(REPRODUCED)" $(ARGS)

drill: $(SWEEP_STAMP)  ## kill a sweep again and again, and feed nonsense to a notebook's parameters
	$(PY) tests/drill.py --write book/results/drill.json

drill-slurm: $(SWEEP_STAMP)  ## disturb a sweep on a real Slurm, started for this on one machine (needs slurm-wlm, munge)
	$(PY) tests/drill_slurm.py --write book/results/drill-slurm.json

test: $(SWEEP_STAMP) $(BROWSER_STAMP)  ## lint, unit tests, the built pages, and the notebooks' stored outputs
	@$(MAKE) --jobs 2 lint $(SITE_STAMP)
	$(PUBLISHED_ONLY) $(PYTEST) tests $(NBVAL)

test-elsewhere: test  ## test, then all compiled code and the notebooks with the plainest CPU kernels, as on another machine
	$(PYTEST) --write-code -k compile
	$(PUBLISHED_ONLY) ATEN_CPU_CAPABILITY=default $(PYTEST) tests $(NBVAL) -k ipynb

test-fast: $(STAMP)  ## the unit tests that are not marked slow
	$(PYTEST) -m "not slow"

lint: style types  ## check style, format, types and spelling, notebooks included

types: $(STAMP)
	$(PY) -m mypy

style: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(BIN)/codespell *.md .github benchmarks book notebooks rwslib tests tools workflow

format: $(STAMP)  ## repair style and format where it can be done automatically
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

notebooks: $(STAMP)  ## execute the committed notebooks in place, at their default parameters
	$(PUBLISHED_ONLY) $(PY) -m jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False notebooks/*.ipynb
	$(PY) -m jupyter nbconvert --coalesce-streams --inplace notebooks/*.ipynb
	$(PY) tools/generate_pages.py --picture book/_static/figure4.svg

serve: $(STAMP)  ## show the built book at http://127.0.0.1:8000 (PORT=... for another port)
	$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

bench: $(SWEEP_STAMP)  ## measure training, evaluation and sweeps on a quiet machine (ARGS="--only air" for a part)
	$(PY) benchmarks/bench.py $(ARGS) --write book/results/benchmark.json

atlas: $(STAMP)  ## measure bias and noise of all methods, about a quarter of an hour (ARGS="--only ww" for some)
	$(PY) -m rwslib.report.comparison --write book/results/atlas.json $(ARGS)

clean:  ## remove the built book and the caches; keep .venv and results
	rm -rf _build tools/site_checks/node_modules .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find benchmarks rwslib tests tools notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv too
	rm -rf .venv *.egg-info
