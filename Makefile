# Two commands: `make train` trains on an embedded sample, `make test` runs the tests; each installs what it needs first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: train test slow torture fuzz lint clean

# the mark is written last, so that an interrupted install is done again
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e '.[dev]'
	touch $@

train: $(VENV)/.installed
	$(BIN)/zoo train sasrec/ml-100k --sample

# a process for each core with a thread each; four at most, for each takes some GB
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

slow: $(VENV)/.installed
	$(BIN)/pytest -m slow

# kills a training run at 50 random moments and compares every byte of what it leaves
torture: $(VENV)/.installed
	STATEZOO_KILLS=50 $(BIN)/pytest -m slow tests/train/test_resume.py -k killed

# ten thousand files made of each kind that somebody else may have written
fuzz: $(VENV)/.installed
	OMP_NUM_THREADS=1 STATEZOO_FUZZ=10000 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal -m 'slow or not slow' tests/fuzz

lint: $(VENV)/.installed
	$(BIN)/ruff check .

clean:
	rm -rf build *.egg-info runs
