PYTHON ?= python3
BIN := .venv/bin
# One process, spelt out: without a saved configuration `accelerate launch` warns of each default.
LAUNCH := $(BIN)/accelerate launch \
	--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
QUICKSTART := runs/quickstart

.PHONY: setup test test-fast lint quickstart clean

setup: .venv/.installed

# The variables hold the build's own setuptools to the same versions, which -c alone does not.
.venv/.installed: export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
.venv/.installed: export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,lint,torchjd]'
	touch $@

test: setup
	$(BIN)/python -m pytest -q

test-fast: setup
	$(BIN)/python -m pytest -q -m 'not slow'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

quickstart: setup
	$(LAUNCH) scripts/train.py --config configs/quickstart.yaml
	$(BIN)/python scripts/gallery.py --pipeline $(QUICKSTART)/pipeline --dataset_name shapes \
		--output_dir $(QUICKSTART)/gallery

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .ruff_cache
	find mtl_diffusion scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
