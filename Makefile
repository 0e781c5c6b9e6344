# `make lm` trains a language model on a book, `make test` proves the library. Both set up all that they need, in .venv.
PYTHON := .venv/bin/python

.PHONY: lm test lint clean

lm: .venv/.examples
	$(PYTHON) examples/language_model.py train --preset demo --resume --output runs/demo

test: .venv/.dev
	$(PYTHON) -m pytest

lint: .venv/.dev
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

.venv/.examples: setup.py .ci/venv
	.ci/venv fast,examples

.venv/.dev: setup.py .ci/venv
	.ci/venv fast,examples,dev

clean:
	rm -rf .venv build dist nnshop.egg-info
