# Each target works on a fresh clone: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Runs a command as a phase and keeps its seconds; alone, prints those of all phases.
PHASE := bash tests/phase.sh $(VENV)/phases

.PHONY: install demo test test-long phases test-seconds check bench serve clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about two minutes the first time)"
	@$(PHASE) install $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[all]"
	@touch $@

# Clips to an animated photo. CLIPS=folder trains on your own videos, INIT=none trains the U-Net from nothing.
demo: $(STAMP)
	@$(BIN)/python recipes/demo.py $(if $(CLIPS),--clips "$(CLIPS)") $(if $(INIT),--init "$(INIT)") $(if $(IMAGE),--image "$(IMAGE)") $(if $(STEPS),--steps "$(STEPS)") $(if $(OUT),--output "$(OUT)")

check: $(STAMP)
	@$(PHASE) check sh -ec '$(BIN)/ruff check .; $(BIN)/ruff format --check .; $(BIN)/mypy'

# Two test processes, one for each core: most of what a test starts waits for a single thread. Files that take longest
# (docs/testing.md) begin, and the two end together.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: check
	@$(PHASE) unit $(PYTEST) -m "not ray and not long" --junitxml $(VENV)/unit.xml
	@$(PHASE) Ray $(PYTEST) -m "ray and not long" --junitxml $(VENV)/ray.xml
	@$(PHASE)

# Kills, lost nodes, full disks, many requests, a browser.
test-long: $(STAMP)
	@$(PHASE) long $(PYTEST) -m long --junitxml $(VENV)/long.xml

# Seconds of each phase that ran here.
phases:
	@$(PHASE)

# Measured seconds of the last runs into docs/testing.md.
test-seconds:
	@$(BIN)/python -m tests.promises $(wildcard $(VENV)/unit.xml $(VENV)/ray.xml $(VENV)/long.xml)

# Animations over HTTP, and a page: http://127.0.0.1:8000/ui. HOST=0.0.0.0 is reachable from other machines.
HOST ?= 127.0.0.1
PORT ?= 8000
define SERVE_CONFIG
http_options: {host: "$(HOST)", port: $(PORT)}
applications:
- {name: cinemo, route_prefix: /, import_path: "serve_app:app", args: {$(if $(MODEL),model: "$(MODEL)")}}
endef
export SERVE_CONFIG
serve: $(STAMP)
	@printf '%s\n' "$$SERVE_CONFIG" > $(VENV)/serve.yaml
	@echo "serving the page at http://$(HOST):$(PORT)/ui and the API's documentation at /docs, once replicas are ready"
	@$(BIN)/serve run $(VENV)/serve.yaml

# Into the table of benchmarks/README.md, in under 30 minutes; a quiet machine gives quiet numbers. BENCHMARKS=--all runs
# the long ones too (about an hour), BENCHMARKS="unet.py speed.py" only these.
bench: $(STAMP)
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@$(BIN)/python benchmarks/table.py $(BENCHMARKS)

clean:
	rm -rf out
