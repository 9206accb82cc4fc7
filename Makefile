# make demo: set up, then show everything. make gallery: every task, as a page. make test: set up, then lint, types and tests.
# make docs: the documentation as a site, out/site/index.html.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
LOCK := requirements.lock
UV := .venv-uv/bin/uv
# A process per core, each with one thread; more than four take more memory than they are worth
PARALLEL := --numprocesses auto --maxprocesses 4
# Threads that wait by sleeping: by spinning they take three times as long where anything else runs
export OMP_WAIT_POLICY ?= passive

.PHONY: demo gallery train test test-oldest test-latest check bench docs lock palette

demo: $(READY)
	$(RUN) -m composer demo --out out/demo

gallery: $(READY)
	$(RUN) examples/gallery.py

train: $(READY) data/scenes64/scenes.json
	$(RUN) -m composer fit -c configs/scenes64.yaml --ckpt_path last

test: check
	$(RUN) -m pytest -q $(PARALLEL)

# What pyproject.toml promises of other versions: the lowest of each range, then the newest
test-oldest: RESOLUTION := lowest-direct
test-latest: RESOLUTION := highest
test-oldest test-latest: test-%: $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) .venv-$*
	$(UV) pip install --quiet --python .venv-$* --resolution $(RESOLUTION) --editable '.[dev]'
	.venv-$*/bin/python -m pytest -q $(PARALLEL)

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	MYPYPATH=benchmarks $(VENV)/bin/mypy benchmarks
	MYPYPATH=examples $(VENV)/bin/mypy examples
	$(VENV)/bin/mypy tests

bench: $(READY)
	$(RUN) benchmarks/unet.py --json benchmarks/results/unet.json
	$(RUN) benchmarks/decompose.py --json benchmarks/results/decompose.json
	$(RUN) benchmarks/upsampling.py --json benchmarks/results/upsampling.json
	$(RUN) benchmarks/scenes.py --json benchmarks/results/scenes.json
	$(RUN) benchmarks/thresholding.py --json benchmarks/results/thresholding.json --plot docs/pictures/thresholding.png
	$(RUN) benchmarks/round_trip.py --json benchmarks/results/round_trip.json
	$(RUN) benchmarks/strengths.py --json benchmarks/results/strengths.json --plot docs/pictures/strengths.png
	$(RUN) benchmarks/best_of.py --json benchmarks/results/best_of.json --plot docs/pictures/best_of.png
	$(RUN) benchmarks/systems.py --json benchmarks/results/systems.json --sheet docs/pictures/systems.jpg

# It reads the sources without importing them, so its environment needs neither PyTorch nor the project
docs: .venv-docs/.ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo see out/site/index.html

.venv-docs/.ready: pyproject.toml
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); print(*p["project"]["optional-dependencies"]["docs"], sep="\n")' > .venv-docs/requirements.txt
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement .venv-docs/requirements.txt
	touch $@

data/scenes64/scenes.json: $(READY)
	$(RUN) -m composer scenes --split train --count 50000 --size 64 --out data/scenes64

# As a constraint the lock says which version and not what: PyTorch's CPU build comes without the CUDA libraries
$(READY): pyproject.toml $(LOCK)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(LOCK) --editable '.[dev]'
	touch $@

# The table of nearest colours that comes along, as decomposers/palette.py computes it
palette: $(READY)
	$(RUN) -c "from decomposers.palette import write_table; write_table()"

# Takes the newest versions that the ranges of pyproject.toml allow, for every platform and Python at once
lock: $(UV)
	$(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --quiet \
		--no-annotate --no-emit-index-url --custom-compile-command 'make lock' --output-file $(LOCK)

$(UV):
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check uv
