SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: setup book pdf reproduce test test-all adapters bench parity archive links clean help

PROFILE ?= mini
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.ready

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## put everything that is needed into .venv (nothing to do: under a second)
	@echo "setup: .venv is ready"

$(READY): requirements.lock pyproject.toml scripts/setup
	@scripts/setup $(READY)

book: $(READY) ## compute a part again and build _build/html/index.html (PROFILE=mini)
	$(BIN)/tipmini book --profile $(PROFILE)

pdf: $(READY) ## print the book that is built to _build/book.pdf (needs Chromium)
	$(BIN)/tipmini pdf

reproduce: $(READY) ## compute every cell of the paper's methods from nothing (PROFILE=mini)
	$(BIN)/tipmini batch reproduced --profile $(PROFILE)

test: $(READY) ## lint, formatting and all quick tests (JOBS=2 at once, of some 1.5 GB each)
	scripts/debian-packages
	scripts/peers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses $(JOBS) --dist worksteal --durations=10 -m "not slow"

test-all: test ## and the slow tests, one after the other: 20 kills, a Slurm of one node
	scripts/slurm node
	$(BIN)/python -m pytest -q --durations=0 -m slow

adapters: $(READY) ## train the seven task adapters again (hours; resumes where it stopped)
	$(BIN)/tipmini batch trained

bench: $(READY) ## measure the time and memory of the main steps
	$(BIN)/python -m bench

parity: $(READY) ## compare merges with those of PEFT, mergekit, fusion-bench and loralib
	scripts/peers
	$(BIN)/python -m tests.parity.measure

archive: book ## pack sources, results, book and their hashes of this commit into _build/*.tar
	$(BIN)/tipmini archive

links: book ## ask every address that the book names (needs the network)
	$(BIN)/jupyter-book build _build/stage --path-output _build/links --builder linkcheck

clean: ## delete what was built; .venv, fetched assets, adapters and committed results stay
	rm -rf _build build .pytest_cache .ruff_cache .hypothesis .snakemake
	find tipmini tipmini_lab bench tests -name __pycache__ -prune -exec rm -rf {} +
