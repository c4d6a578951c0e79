# `make help` lists the targets. Each makes .venv and installs what is missing, once.
PYTHON ?= python3
BIN    := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test notebooks new-notebook docs bench cover sync clean
help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/.demo: $(BIN)/python settings.ini
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	@touch $@

.venv/.dev: $(BIN)/python settings.ini
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@ .venv/.demo

demo: .venv/.demo ## train on a toy world (minutes on a laptop) and write demo/
	picie-demo

test: .venv/.dev ## run every test; what CI runs
	python -m pytest

notebooks: .venv/.dev ## re-execute all notebooks and save their outputs
	OMP_NUM_THREADS=2 nbdev-test --n-workers 1 --save
	$(MAKE) sync

sync: .venv/.dev ## notebooks -> package and README; clean the notebooks
	nbdev-export
	nbdev-clean
	python tools/readme.py

new-notebook: .venv/.dev ## begin one: make new-notebook NAME=use/distances TITLE="Distances" SUBTITLE="How far is far"
	python tools/new_notebook.py "$(NAME)" "$(TITLE)" "$(SUBTITLE)"

docs: .venv/.dev ## build the documentation site into _docs/
	python tools/docs.py

bench: .venv/.dev ## measure speed on this machine, in ratios (about 20 minutes)
	python bench/run.py

cover: .venv/.dev ## which lines do tests and notebooks run? (half an hour)
	python tools/cover.py

clean: ## remove what was built
	rm -rf _docs _proc build dist demo *.egg-info
