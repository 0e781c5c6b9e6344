# `make lm` trains a language model on a book, `make test` proves the library. Both set up all that they need, in .venv.
PYTHON := .venv/bin/python

.PHONY: lm test fuzz lint bench clean

lm: .venv/.examples
	$(PYTHON) examples/language_model.py train --preset demo --resume --output runs/demo

test: .venv/.dev
	$(PYTHON) -m pytest -n 2

fuzz: .venv/.dev
	$(PYTHON) -m pytest -n 2 tests/test_fuzz.py tests/test_fuzz_calls.py tests/compiling/test_random_steps.py --hypothesis-profile=fuzz

lint: .venv/.dev
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

bench: .venv/.examples
	benchmarks/rivals_venv
	$(PYTHON) benchmarks/run.py
	$(PYTHON) benchmarks/run.py --threads 2

.venv/.examples: setup.py .ci/venv
	.ci/venv fast,examples

.venv/.dev: setup.py .ci/venv
	.ci/venv fast,examples,mpi,dev

clean:
	rm -rf .venv .venv-rivals build dist nnshop.egg-info
