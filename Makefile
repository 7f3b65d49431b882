# make venv   .venv with the exact versions of constraints.txt, and this checkout in it
# make demo   two models fitted, certified and drawn under out/; again at any time
# make test   linters, types, import contracts, tests, doctests; what .ci/run runs
# make lint   the first three alone
# make bench  side by side with other libraries, as ratios
# make clean  away with what these made

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# Models this small are slower on two threads than on one.
demo lint test: export OMP_NUM_THREADS ?= 1
export MPLBACKEND := Agg

.PHONY: venv demo test lint bench clean
.DELETE_ON_ERROR:

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip hatchling editables
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --group dev --editable .
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/digits.py out/digits.csv
	$(BIN)/ppl-gen fit models/gaussian_mixture.yaml examples/data/faithful.csv --set z.k=2 \
	  --out out/faithful --replace
	$(BIN)/ppl-gen fit models/vae.yaml out/digits.csv --algorithm "SVI(epochs=200, batch_size=128)" \
	  --out out/digits --replace
	$(BIN)/python examples/demo.py out

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest

bench: $(STAMP)
	$(BIN)/python benchmarks/mixture.py
	$(BIN)/python benchmarks/svi_step.py

clean:
	rm -rf $(VENV) out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
