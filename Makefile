# make demo   sets up .venv and generates a video with the model that ships in the package
# make test   sets up .venv and runs every check: ruff, mypy, pytest in two processes (JOBS=4 for four)
# make conformance  every method on every family, hours on two cores; goes on where it was stopped; writes the table
# make lint   the checks without the tests
# make clean  removes .venv and everything that was built or cached
# PYTHON=/path/to/python picks the interpreter that makes .venv (3.11 or newer).

PYTHON ?= python3
VENV := .venv
JOBS ?= 2
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
PINS := $(VENV)/constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: demo test conformance lint clean

demo: $(VENV)/.demo
	$(VENV)/bin/accel generate --prompt "a red circle moving left on a black background" \
		--preset balanced -o demo.mp4 --overwrite

test: lint
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile

conformance: $(VENV)/.test
	mkdir -p outputs
	-$(VENV)/bin/python -m pytest tests/conformance/test_methods.py tests/conformance/test_whole_grid.py \
		tests/conformance/test_whole_grid_stored.py --grid=whole \
		-n $(JOBS) --dist load --record outputs/conformance.jsonl -q
	$(VENV)/bin/python -m tests.conformance.record outputs/conformance.jsonl

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp stands for one finished installation; an interrupted one leaves no stamp and is repeated.
# torch comes first, because which build is right depends on the machine. The CPU build is tried under its own
# name (only the index knows whether it has it); any other failure of that attempt is shown and ends the set-up.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Accel needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Setting up $(VENV): the first time takes some minutes"
	$(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/default-torch; cp constraints.txt $(PINS); \
	if [ "$$(uname -s)" != Linux ]; then exit 0; fi; \
	default="s/^torch==.*/&,!=$(TORCH)+cpu/"; \
	if nvidia-smi -L >/dev/null 2>&1; then \
		sed "$$default" constraints.txt > $(PINS); \
	elif $(PIP) install -q --no-deps "torch==$(TORCH)+cpu" 2> $(VENV)/torch.log; then \
		echo "torch $(TORCH)+cpu: the CPU build, since no NVIDIA GPU was found"; \
	elif grep -q "No matching distribution found for torch" $(VENV)/torch.log; then \
		echo "The package index has no CPU build of torch $(TORCH): installing the default build, several GB" \
			"(PIP_EXTRA_INDEX_URL can name PyTorch's CPU index)" | tee $(VENV)/default-torch; \
		sed "$$default" constraints.txt > $(PINS); \
	else cat $(VENV)/torch.log >&2; exit 1; fi
	$(PIP) install -q -c $(PINS) torch setuptools
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	$(PIP) install -q -c $(PINS) --no-build-isolation -e .
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.demo
	$(PIP) install -q -c $(PINS) --no-build-isolation -e ".[test,bench]"
	@touch $@
