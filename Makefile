# make demo: set up, then show everything. make gallery: every task, as a page. make test: set up, then lint, types and tests.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
# Threads that wait by sleeping: by spinning they take three times as long where anything else runs
export OMP_WAIT_POLICY ?= passive

.PHONY: demo gallery train test check bench

demo: $(READY)
	$(RUN) -m composer demo --out out/demo

gallery: $(READY)
	$(RUN) examples/gallery.py

train: $(READY) data/scenes64/scenes.json
	$(RUN) -m composer fit -c configs/scenes64.yaml --ckpt_path last

test: check
	$(RUN) -m pytest -q

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(READY)
	$(RUN) benchmarks/unet.py --json benchmarks/results/unet.json
	$(RUN) benchmarks/decompose.py --json benchmarks/results/decompose.json
	$(RUN) benchmarks/upsampling.py --json benchmarks/results/upsampling.json
	$(RUN) benchmarks/scenes.py --json benchmarks/results/scenes.json
	$(RUN) benchmarks/thresholding.py --json benchmarks/results/thresholding.json --plot docs/pictures/thresholding.png
	$(RUN) benchmarks/round_trip.py --json benchmarks/results/round_trip.json
	$(RUN) benchmarks/strengths.py --json benchmarks/results/strengths.json --plot docs/pictures/strengths.png
	$(RUN) benchmarks/best_of.py --json benchmarks/results/best_of.json --plot docs/pictures/best_of.png

data/scenes64/scenes.json: $(READY)
	$(RUN) -m composer scenes --split train --count 50000 --size 64 --out data/scenes64

$(READY): pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
