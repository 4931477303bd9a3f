# Every target makes or updates .venv itself; `make` alone tells what there is.
#
# PYTHON       the interpreter that .venv is made from; default python3.11, or python3 where that is missing
# TORCH_INDEX  the package index torch comes from; default: pip's own. Without a GPU the CPU build saves
#              gigabytes: make venv TORCH_INDEX=https://download.pytorch.org/whl/cpu
# WORKERS      so many processes share the tests, a file at a time; default 2. Each starts its own RabbitMQ
# SIM_PYTHON   what plays simulations, with .venv's packages; default: Debian's own python3.11, where .venv is of
#              another build of 3.11 (those of pyenv are a quarter slower), else .venv's
# SEEDS        of make sim: the first, and the one after the last
# DURATION_S   how long `make chaos` goes on at each broker; default 120 seconds
# SEED         what `make chaos` draws by; default 0
# ARGS         options for the program behind a target: make demo ARGS=--json, make test ARGS="-k outbox"

PYTHON ?= $(shell command -v python3.11 >/dev/null 2>&1 && echo python3.11 || echo python3)
TORCH_INDEX ?=
WORKERS ?= 2
DURATION_S ?= 120
SEED ?= 0
ARGS ?=
SEEDS ?= 0:200

TORCH := torch==2.13.0
BIN := .venv/bin
STAMP := .venv/.fedbus-installed
SITE := .venv/lib/python3.11/site-packages
SIM_PYTHON ?= $(shell test -d $(SITE) -a -x /usr/bin/python3.11 && echo /usr/bin/python3.11 || echo $(BIN)/python)
SIM = PYTHONPATH=$(CURDIR):$(CURDIR)/$(SITE) $(SIM_PYTHON) -m tests.sim

.DEFAULT_GOAL := help
.PHONY: help venv demo test check bench bench-learning sim crash-points mutants chaos clean

help:
	@echo "make demo         federated training on this machine, in ./fedbus-demo, with real data"
	@echo "make test         the tests; as root on Debian or Ubuntu it installs the brokers and the data that they need"
	@echo "make check        formatting, lint, types, import directions, tidiness"
	@echo "make bench        the measurements"
	@echo "make bench-learning  what is learned: strategies, local steps, asynchronous rounds, bytes; ARGS=strategies for one"
	@echo "make sim          simulated fleets with every fault, seed after seed: SEEDS=0:2000"
	@echo "make crash-points kill the simulated programs at every point of a round, and count what is lost"
	@echo "make mutants      plant bugs, and look whether the simulation finds them"
	@echo "make chaos        kills and worse for real processes at real brokers; then nothing may be lost or doubled"
	@echo "make venv         only make or update .venv"
	@echo "make clean        remove caches and build output (keeps .venv and fedbus-demo)"

venv: $(STAMP)

# torch goes first and alone, so that TORCH_INDEX concerns nothing else; what it depends on comes from
# the second line, at the versions of constraints.txt, which name the same torch: pip leaves it as it is.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

demo: venv
	$(BIN)/fedbus-coordinator demo $(ARGS)

test: venv
	@sh tests/install_brokers.sh --if-possible
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: venv
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_tidy.py

chaos: venv
	$(BIN)/python -m tests.chaos --duration-s $(DURATION_S) --seed $(SEED) $(ARGS)

bench: venv
	$(BIN)/python -m tests.bench.run $(ARGS)

bench-learning: venv
	$(BIN)/python -m tests.bench.learning $(ARGS)

sim: venv
	$(SIM) $(SEEDS) $(ARGS)

crash-points: venv
	$(SIM) points $(ARGS)

mutants: venv
	$(SIM) mutants $(ARGS)

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find broker compressors coordinator edge_agent schemas tests -name __pycache__ -type d -prune -exec rm -rf {} +
