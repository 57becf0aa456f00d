# setup  makes .venv and installs everything, once: some minutes on a new machine
# demo   generated dataset -> labels -> completed labels -> the errors of both against exact depth -> detectors trained
#        for a moment on each depth source and compared; in demo/
# test, lint, bench (all of benchmarks/), clean (all but .venv)

SHELL := /bin/bash
# A pyenv shim can be on PATH without the Python behind it, so it is tried, not looked up.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
READY := .venv/.setup-done
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OPEN3D_LIBRARIES := libusb-1.0-0 libgl1 libegl1 libx11-6
REQUIRED := numpy pyarrow zarr torch torch_scatter ray nuscenes open3d

.PHONY: setup ext demo test lint bench clean
setup: ext

# The compiled part of ext: done in a moment where it is built, in seconds where it is not.
ext: $(READY)
	@$(BIN)/python ext/build.py

# Order matters: a bare torch is the newest build, and torch-scatter is compiled against the torch that is there.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	  { echo "setup: $(PYTHON) is not Python 3.11; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@dpkg -s $(OPEN3D_LIBRARIES) >/dev/null 2>&1 || \
	  { [ "$$(id -u)" = 0 ] && echo "setup: system libraries of open3d" && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends $(OPEN3D_LIBRARIES) >/dev/null; } || \
	  echo "setup: open3d needs these system libraries, please install them: $(OPEN3D_LIBRARIES)"
	@echo "setup: torch"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) torch==2.13.0
	@$(INSTALL) ninja setuptools wheel
	@$(BIN)/python -c 'import torch_scatter' 2>/dev/null || \
	  { echo "setup: torch-scatter, compiled from source (minutes)"; \
	    MAX_JOBS=$$(nproc) $(INSTALL) --no-build-isolation torch-scatter; }
	@echo "setup: the package and all else that it needs"
	@$(INSTALL) --no-build-isolation --editable '.[dev]'
	@for module in $(REQUIRED); do \
	  error=$$($(BIN)/python -c "import $$module" 2>&1) || \
	    { echo "setup: $$module does not import: $$(tail -n 1 <<<"$$error")"; exit 1; }; done
	@touch $@

demo/data/.done: $(wildcard dense_depth/synthetic/*.py) | $(READY)
	$(BIN)/python -m dense_depth synth --out demo/data
	@touch $@

demo: DEMO := --dataset nuscenes --dataroot demo/data --version v1.0-synth --store demo/store
demo: demo/data/.done
	$(BIN)/python pipelines/accumulate.py $(DEMO) --kind lidar
	$(BIN)/python pipelines/accumulate.py $(DEMO) --tag demo
	$(BIN)/python pipelines/evaluate.py $(DEMO) --ref demo --truth --pictures demo/pictures --tag demo
	$(BIN)/python pipelines/complete.py $(DEMO) --ref demo --tag completed
	$(BIN)/python pipelines/evaluate.py $(DEMO) --ref completed --kind completed --truth \
	  --pictures demo/pictures/completed --tag completed
	$(BIN)/python -m catalog --store demo/store verify completed
	rm -rf demo/compare
	$(BIN)/python training/compare.py $(DEMO) --ref completed --size tiny --train synth_train --val synth_val \
	  --steps 8 --batch 2 --lr 2e-3 --warmup 2 --workers 0 --threads 1 --seeds 2 --jobs 2 --out demo/compare --demo
	@echo "Look at demo/pictures: image, label, truth and errors, the worst frames first; images are in demo/data/samples"
	@echo "demo/compare has a detector for each depth source and seed, trained for a moment: no result, only the way to one"

test: ext
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: ext
	@status=0; for script in benchmarks/[!_]*.py; do \
	  echo "== $$script"; $(BIN)/python "$$script" || status=1; done; exit $$status

clean:
	rm -rf demo build ext/lib *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
