# make demo: from a corpus to a report. make test: the fast tests. Both install first, into .venv.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m

.PHONY: help install demo test test-all test-slurm bench lint format clean

help:
	@echo "make demo      prepare a corpus, train a GPT and an LSTM, judge them, write a report (a few minutes on 2 cores)"
	@echo "make test      the fast tests"
	@echo "make test-all  the slow tests too"
	@echo "make test-slurm  jobs on a Slurm cluster that is started for them, where Slurm is installed"
	@echo "make bench     ratios of speed, on an idle machine"
	@echo "make lint      ruff and pyright"
	@echo "make install   .venv with everything; the others do it by themselves"

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(RUN) data_prep run --config configs/demo/data.yaml
	$(RUN) pipeline fit --config configs/demo/gpt.yaml
	$(RUN) pipeline fit --config configs/demo/lstm.yaml
	$(RUN) pipeline validate --config configs/demo/gpt.yaml --ckpt_path last
	$(RUN) pipeline validate --config configs/demo/lstm.yaml --ckpt_path last
	$(RUN) pipeline evaluate --run runs/demo/gpt
	$(RUN) pipeline evaluate --run runs/demo/lstm
	$(RUN) pipeline generate --run runs/demo/gpt --prompt "Return the number of"
	$(RUN) pipeline generate --run runs/demo/lstm --prompt "Return the number of"
	$(RUN) pipeline report runs/demo

# A worker a core, each with one thread: the models under test are too small to share.
test: install
	OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses auto

test-all: test
	$(RUN) pytest -m slow

# A cluster for each of three workers, which wait more than they compute.
test-slurm: install
	OMP_NUM_THREADS=1 $(RUN) pytest -m slurm tests/slurm --numprocesses 3

bench: install
	$(RUN) pytest -m benchmark tests/benchmarks

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf data/demo runs/demo
