# Each target works on a fresh clone: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-long check bench serve clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about two minutes the first time)"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[all]"
	@touch $@

# Clips to an animated photo. CLIPS=folder trains on your own videos, INIT=none trains the U-Net from nothing.
demo: $(STAMP)
	@$(BIN)/python recipes/demo.py $(if $(CLIPS),--clips "$(CLIPS)") $(if $(INIT),--init "$(INIT)") $(if $(IMAGE),--image "$(IMAGE)") $(if $(STEPS),--steps "$(STEPS)") $(if $(OUT),--output "$(OUT)")

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests that start Ray take both cores by themselves; the others go side by side.
test: check
	$(BIN)/python -m pytest -m "not ray and not long" -n $(WORKERS) --dist loadfile
	$(BIN)/python -m pytest -m "ray and not long"

# Kills, lost nodes, full disks: tests of more than a minute each.
test-long: $(STAMP)
	$(BIN)/python -m pytest -m long

# Animations over HTTP, and a page: http://127.0.0.1:8000/ui
serve: $(STAMP)
	@echo "serving the page at http://127.0.0.1:8000/ui and the API's documentation at /docs, once replicas are ready"
	@$(BIN)/serve run serve_app:app $(if $(MODEL),model="$(MODEL)")

# Into the table of benchmarks/README.md, in under 30 minutes; a quiet machine gives quiet numbers. BENCHMARKS=--all runs
# the long ones too (about an hour), BENCHMARKS="unet.py speed.py" only these.
bench: $(STAMP)
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@$(BIN)/python benchmarks/table.py $(BENCHMARKS)

clean:
	rm -rf out
