# `make demo` and `make test` bring a fresh Debian or Ubuntu machine to a working .venv, and are quick once it is there.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
APT_PACKAGES := python3-meep python3-matplotlib python3-h5py libopenblas0-pthread
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
HAS_MPB := $(VENV)/bin/python -c 'from data_gen.solvers import mpb; raise SystemExit(not mpb.is_available())'

.PHONY: demo test coverage bench crosscheck docs setup

demo: setup
	$(VENV)/bin/photonic-essl demo

test: setup
	$(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile

coverage: setup
	$(VENV)/bin/coverage erase
	$(VENV)/bin/coverage run -m pytest
	$(VENV)/bin/coverage combine --quiet
	$(VENV)/bin/coverage report
	$(VENV)/bin/python -m experiments.faults.unreached

bench: setup
	$(VENV)/bin/python -m experiments.benchmarks.solvers
	$(VENV)/bin/python -m experiments.benchmarks.labels
	$(VENV)/bin/python -m experiments.benchmarks.subpixel
	$(VENV)/bin/python -m experiments.benchmarks.prediction
	$(VENV)/bin/python -m experiments.benchmarks.pretraining

crosscheck: setup
	$(VENV)/bin/python -m experiments.crosscheck

docs: setup
	$(VENV)/bin/mkdocs build --strict

setup: $(VENV)/.packages-ready $(VENV)/.mpb-ready $(VENV)/.browser-ready

$(VENV)/.packages-ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --editable '.[test,docs]' \
		|| $(VENV)/bin/python -m pip install --disable-pip-version-check --editable '.[test,docs]'
	touch $@

# MPB runs under an interpreter of its own, so its packages stay out of .venv. Without it, everything but MPB works.
$(VENV)/.mpb-ready: $(VENV)/.packages-ready
	@if $(HAS_MPB); then touch $@; \
	elif command -v apt-get >/dev/null && $(SUDO) apt-get update -q && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(APT_PACKAGES) && \
		$(HAS_MPB); then touch $@; \
	else echo "MPB cannot be had here, so going on without it; get it with \`apt install $(APT_PACKAGES)\` or \`conda install -c conda-forge pymeep\`" >&2; fi

# The tests of the report drive a browser; without one they are skipped.
$(VENV)/.browser-ready: $(VENV)/.packages-ready
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then touch $@; \
	elif command -v apt-get >/dev/null && $(SUDO) apt-get update -q && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium; then touch $@; \
	else echo "Chromium cannot be had here, so the tests in a browser are skipped; get it with \`apt install chromium\`" >&2; fi
