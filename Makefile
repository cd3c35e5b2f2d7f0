PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest/bin
# One process, spelt out: without a saved configuration `accelerate launch` warns of each default.
LAUNCH := $(BIN)/accelerate launch \
	--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
# The tests run in this many processes; each test has one thread, or starts two processes.
WORKERS ?= 2
PYTEST := python -m pytest -q -n $(WORKERS) --dist worksteal
QUICKSTART := runs/quickstart
DEMO := pretrained/mtl-cifar10
# What pyproject.toml offers beyond the package itself; dev is all of it.
EXTRAS := dev
INSTALLED := .venv/.installed-$(EXTRAS)
# A run, and what is published; `make test-oldest OLDEST_TESTS=` runs all that are fast.
OLDEST_TESTS := tests/publishing/test_upload.py tests/checkpoints/test_resume.py tests/classifiers \
	$(patsubst %,tests/data/test_%.py,columns decode folder images loader) \
	$(patsubst %,tests/pipeline/test_%.py,\
	chains loading pipeline pipeline_errors sampler shipping tokens)

.PHONY: setup test test-fast test-oldest lint docs quickstart demo clean

setup: $(INSTALLED)

# The variables hold the build's own setuptools to the same versions, which -c alone does not.
$(INSTALLED): export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
$(INSTALLED): export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

test: setup
	$(BIN)/$(PYTEST)

test-fast: setup
	$(BIN)/$(PYTEST) -m 'not slow'

# The lower bounds of pyproject.toml: what is saved there loads here, and the other way round.
test-oldest: setup .venv-oldest/.installed
	OTHER_PYTHON=$(OLDEST)/python $(BIN)/python -m pytest -q tests/pipeline/test_shipping.py -k others
	$(OLDEST)/$(PYTEST) -m 'not slow' $(OLDEST_TESTS)

.venv-oldest/.installed: export PIP_CONSTRAINT := $(CURDIR)/oldest.txt
.venv-oldest/.installed: export PIP_BUILD_CONSTRAINT := $(CURDIR)/oldest.txt
.venv-oldest/.installed: pyproject.toml oldest.txt
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet -c oldest.txt -e '.[test]'
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The pages of the repository and the API, as a site in site/.
docs: setup
	$(BIN)/mkdocs build --strict

quickstart: setup
	$(LAUNCH) scripts/train.py --config configs/quickstart.yaml
	$(BIN)/python scripts/gallery.py --pipeline $(QUICKSTART)/pipeline --dataset_name shapes \
		--output_dir $(QUICKSTART)/gallery

# `make demo DEMO=FOLDER` shows another model.
demo: setup
	$(BIN)/python scripts/demo.py --pipeline $(DEMO)

clean:
	rm -rf .venv .venv-oldest runs site build *.egg-info .pytest_cache .ruff_cache
	find mtl_diffusion scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
