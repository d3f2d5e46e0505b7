# Every target may be repeated: finished steps are skipped.
#   make demo   environment, synthetic drive, training, scores and a picture (minutes on two CPU cores)
#   make test   environment, lint, types, test suite
#   make docs   the documentation as pages, site/index.html
#   make test-openmmlab   the files for OpenMMLab 1.x inside mmcv, mmdet and mmseg, in a separate environment
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN = $(abspath $(VENV))/bin
READY = $(VENV)/.installed
# --no-compile: Python compiles modules at their first import, and most are never imported: 20 s less
# test files in parallel, because most use one core; in the order of tests/conftest.py, else files with few, slow tests come last
TESTS ?= -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder
PIP = pip install --quiet --disable-pip-version-check --no-compile

OPENMMLAB ?= .venv-openmmlab

DEMO_DATA = data/demo
DEMO_RUN = output/demo
DEMO_PICTURE = out/demo.png
DEMO_MODEL = out/tpvformer-demo
EMBED ?= demo

.PHONY: help env demo embed docs test test-openmmlab lint types unit clean
.DELETE_ON_ERROR:

# container images set it; then every process of the tests would compile all modules of PyTorch again, 5 s of CPU
unexport PYTHONDONTWRITEBYTECODE

help:
	@sed -n '2,5s/^#   //p' Makefile

env: $(READY)

$(READY): pyproject.toml
	@echo "== environment: $(VENV) ($(TORCH), then this package and its tools; a minute or two)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "make: $(PYTHON) cannot create $(VENV); on Debian: apt install python3-venv" >&2; rm -rf $(VENV); exit 2; }
	@$(BIN)/python -m $(PIP) "$(TORCH)"
	@$(BIN)/python -m $(PIP) --editable ".[dev]"
	@touch $@

demo: env
	@echo "== synthetic drive: $(DEMO_DATA)"
	@$(BIN)/tpvformer synth --out $(DEMO_DATA) --scenes 1100 --frames 1 --size 224x128 --seed 1
	@echo "== training from random weights: $(DEMO_RUN)"
	@PYTHON="$(BIN)/python" bash test/train_1p.sh --py_config=config/demo.py --work_dir=$(DEMO_RUN)
	@echo "== controls: cameras exchanged, a constant answer, colour without a network"
	@$(BIN)/tpvformer eval --py-config config/demo.py --ckpt-path $(DEMO_RUN)/best.pth --permute-cameras
	@echo "== a frame that training never saw: $(DEMO_PICTURE)"
	@$(BIN)/tpvformer picture --py-config config/demo.py --ckpt-path $(DEMO_RUN)/best.pth --out $(DEMO_PICTURE)
	@echo "== its weights, to share: $(DEMO_MODEL)"
	@$(BIN)/tpvformer convert $(DEMO_RUN) $(DEMO_MODEL)
	@echo "== done; the shipped weights are unchanged: tpvformer demo and --ckpt-path demo use them;"
	@echo "   use your own like this: tpvformer predict --ckpt-path $(DEMO_MODEL) --rig RIG.json --out out/mine"

# for a release: copy the weights of a finished run into the package: EMBED=demo, of make demo, or EMBED=demo_dense
embed: env
	@echo "== weights inside the package, in half precision, from output/$(EMBED): tpvformer/weights/$(EMBED).safetensors"
	@$(BIN)/tpvformer convert --half output/$(EMBED) $(DEMO_MODEL)-half
	@cp $(DEMO_MODEL)-half/model.safetensors tpvformer/weights/$(EMBED).safetensors

docs: env
	@echo "== pages: site/index.html (mkdocs)"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

test: lint types unit

lint: env
	@echo "== lint (ruff)"
	@$(BIN)/ruff check --quiet .

types: env
	@echo "== types (ty)"
	@$(BIN)/ty check --quiet --python $(VENV)

unit: env
	@echo "== tests (pytest)"
	@$(BIN)/python -m pytest $(TESTS)

test-openmmlab: $(OPENMMLAB)/.installed
	@echo "== tests inside OpenMMLab (pytest)"
	@python="$(abspath $(OPENMMLAB))/bin/python"; \
	  TPVFORMER_OPENMMLAB_PYTHON="$$python" "$$python" -m pytest tests/compat/test_openmmlab.py \
	    tests/engine/foreign/test_fork.py

$(OPENMMLAB)/.installed: tools/openmmlab_env.sh
	@echo "== environment: $(OPENMMLAB) ($(TORCH), mmcv, mmdet, mmseg; a minute or two)"
	@TORCH="$(TORCH)" tools/openmmlab_env.sh $(OPENMMLAB) $(PYTHON)
	@touch $@

clean:
	@echo "== removing $(VENV), $(OPENMMLAB), $(DEMO_DATA), $(DEMO_RUN), $(DEMO_PICTURE), $(DEMO_MODEL), $(DEMO_MODEL)-half and site"
	@rm -rf $(VENV) $(OPENMMLAB) $(DEMO_DATA) $(DEMO_RUN) $(DEMO_PICTURE) $(DEMO_MODEL) $(DEMO_MODEL)-half site
