# Two commands matter: `make quickstart` and `make test`. Each sets up .venv by itself on first use, and again when
# pyproject.toml or constraints.txt changed.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help quickstart test docs bases browser clean

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
INSTALL := $(PIP) install -c constraints.txt
SITE := $(PY) -m sphinx -W --keep-going -q -b html docs build/site

help:
	@echo 'make quickstart [ARGS=...]  from a fresh clone to a trained reward model and an aligned generator'
	@echo 'make test                   style, floors of imports, types, the site, tests'
	@echo 'make docs                   the site, in build/site'
	@echo 'make bases                  train the small ShapeWorld checkpoints anew'
	@echo 'make browser                Chromium and axe-core, which the tests of pages need (Debian, as root)'
	@echo 'make clean                  remove .venv and caches; what is under runs/ stays'
	@echo 'PYTHON=/path/to/python3 names the interpreter of .venv (3.11 or newer)'

quickstart: $(VENV)/.installed
	@$(VENV)/bin/rewarddance quickstart $(ARGS)

bases: $(VENV)/.installed
	@$(VENV)/bin/rewarddance bases $(ARGS)

docs: $(VENV)/.installed-dev
	@$(SITE)
	@echo 'build/site/index.html'

AXE := 4.14.1

browser:
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null || { \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; }
	@mkdir -p build && cd build && npm pack --silent axe-core@$(AXE) > /dev/null && \
		tar -xzf axe-core-$(AXE).tgz package/axe.min.js --strip-components=1 && rm axe-core-$(AXE).tgz

# One thread a process whatever the machine (the same sums in the same order), and as many processes as cores. Bytecode
# is kept: else each of them, and each that it starts, compiles all sources and all tests.
test: export HF_HUB_OFFLINE := 1
test: export TOKENIZERS_PARALLELISM := false
test: export OMP_NUM_THREADS := 1
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.installed-dev
	@echo '> ruff check';          $(PY) -m ruff check --quiet
	@echo '> ruff format --check'; $(PY) -m ruff format --check --quiet
	@echo '> lint-imports';        $(VENV)/bin/lint-imports --no-cache > $(VENV)/lint.log 2>&1 || { cat $(VENV)/lint.log; exit 1; }
	@echo '> pyright';             $(PY) -m pyright > $(VENV)/pyright.log 2>&1 || { cat $(VENV)/pyright.log; exit 1; }
	@echo '> sphinx-build -W';     $(SITE) > $(VENV)/site.log 2>&1 || { cat $(VENV)/site.log; exit 1; }
	@echo '> pytest';              $(PY) -m pytest -q -n auto --dist worksteal $(ARGS)

clean:
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find src tests examples benchmarks experiments -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps are written last, so a set-up that was cut off is taken up again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(venv)
	@echo '> torch (minutes, the first time)'; $(INSTALL) torch
	@echo '> rewarddance'; $(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	@$(venv)
	@echo '> torch (minutes, the first time)'; $(INSTALL) torch
	@echo '> rewarddance and the tools of its tests'; $(INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed $@

# A .venv that works is kept. Cut off in the middle, pip leaves packages without RECORD that it would take for whole;
# they are removed, so that it brings them again. Some pythonX on PATH are shims that only fail, hence the trial.
define venv
set -e; \
for info in $(VENV)/lib/python3.*/site-packages/*.dist-info; do \
	if [ -d "$$info" ] && [ ! -f "$$info/RECORD" ]; then rm -rf "$$info"; fi; \
done; \
if ! $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	found=; \
	for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			found=$$python; break; \
		fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo 'No Python 3.11 or newer that can make a virtual environment was found on PATH.' >&2; \
		echo 'Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.12),' >&2; \
		echo 'or name one: make quickstart PYTHON=/path/to/python3.12' >&2; \
		exit 1; \
	fi; \
	echo "> $(VENV), from $$found ($$("$$found" -c 'import platform; print(platform.python_version())'))"; \
	"$$found" -m venv --clear $(VENV); \
elif ! $(PY) -c 'import importlib.metadata as m, sys; sys.exit(not m.distribution("pip").read_text("RECORD"))' 2>/dev/null; then \
	echo '> pip'; $(PY) -m ensurepip --upgrade > /dev/null; \
fi
endef
