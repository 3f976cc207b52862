# Two commands on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test test-quick test-slurm golden mutants ends chaos bench gpu packages docs lint clean

train: .venv/.all
	$(BIN)/torchrun --standalone --nproc_per_node=2 -m distcnn train configs/digits.yaml
	@echo
	@echo 'Next, CIFAR-10 (downloaded once, 163 MB):'
	@echo '  $(BIN)/torchrun --standalone --nproc_per_node=2 -m distcnn train configs/simple_cnn.yaml'
	@echo 'or your own images, in a folder with train/<class>/ and test/<class>/:'
	@echo '  $(BIN)/distcnn train configs/simple_cnn.yaml --data.source folder --data.root DIR'

# Two files at a time: most tests wait more than they compute.
test: .venv/.lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# A part of `make test`, in about a minute: what starts no process, and the golden curves.
test-quick: .venv/.lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow' tests/unit tests/golden

# Plants one fault at a time, which the quick tests have to find. About half an hour on 2 cores.
mutants: .venv/.lint
	$(BIN)/python -m tests.mutants --out docs/mutants.md

# Runs every command 200 times on 2 ranks while other processes keep the cores busy. An hour or more on 2 cores.
ends: .venv/.lint
	$(BIN)/python -m tests.ends --n 200

# Regenerates the golden curves, after an intended change of numbers that the commit explains.
golden: .venv/.lint
	$(BIN)/python -m tests.golden.curves

# A part of `make test` by itself: a real two-node Slurm cluster on this host. Needs root and `make packages`.
test-slurm: .venv/.lint
	DISTCNN_TEST_ALL=1 $(BIN)/python -m pytest tests/slurm

# One fault a trial, then a resume that has to end in the same bits. About 10 s each.
TRIALS ?= 200
SEED ?= 0
chaos: .venv/.lint
	$(BIN)/python -m tests.chaos --trials $(TRIALS) --seed $(SEED) --out docs/chaos.md

# Compares with other libraries on an image folder DIR: about two hours on 2 cores. Parts: python -m benchmarks.peers …
N ?= 5
bench: .venv/.bench
	@test -n '$(DIR)' || { echo 'usage: make bench DIR=... (an image folder with train/<class>/ and test/<class>/)'; exit 2; }
	$(BIN)/python -m benchmarks.pipeline '$(DIR)' --n $(N)
	$(BIN)/python -m benchmarks.overhead '$(DIR)' --n $(N)
	$(BIN)/python -m benchmarks.peers '$(DIR)' --n $(N)
	$(BIN)/python -m benchmarks.report

# What only a machine with an NVIDIA GPU can answer: four commands of nine minutes at most; with FIRST=1 the checks that matter
# most. Installs nothing, for there may be no internet: docs/gpu.md says what to bring. DATA: CIFAR-10 as an image folder, or
# packed; NCCL: a libnccl.so.2 of 2.30 or later, where PyTorch's own is older; AIRBENCH: airbench94_muon.py; OUT: a folder for
# the results, which are then added to docs/gpu. Exits with 2 where there is no GPU.
GPU = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m
GPU_OPTIONS = $(if $(FIRST),--first) $(if $(DATA),--data '$(DATA)') $(if $(NCCL),--nccl '$(NCCL)') \
	$(if $(AIRBENCH),--airbench '$(AIRBENCH)') $(if $(OUT),--out '$(OUT)')
gpu:
	@status=0; for command in tests.gpu.correct tests.gpu.ranks benchmarks.gpu $(if $(FIRST),,tests.gpu.more); do \
		$(GPU) $$command $(GPU_OPTIONS) || { code=$$?; [ $$code = 1 ] || exit $$code; status=1; }; \
	done; $(GPU) tests.gpu.page $(if $(OUT),'$(OUT)'); exit $$status

# What the tests of Slurm, mpirun, two hosts and the report need (Debian); without it they are skipped.
packages:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		slurmctld slurmd slurm-client munge openmpi-bin iproute2 procps chromium

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'site/index.html'

lint: .venv/.lint
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck launch/*.sh slurm/* tests/slurm/*.sh

# One stamp for each extra: pip runs again only when pyproject.toml has changed.
.venv/.%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv
