# Two commands do everything: `make demo` and `make test`. Both build .venv first if it is not there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SITE   := $(VENV)/.ready-site
BROWSER := $(VENV)/.ready-browser
PIP    := PYTHONWARNINGS=ignore:Editable $(BIN)/python -m pip install --quiet
NBS    := $(sort $(wildcard nbs/*.ipynb nbs/data/*.ipynb nbs/nets/*.ipynb nbs/refine/*.ipynb nbs/papers/*.ipynb nbs/tutorials/*.ipynb nbs/results/*.ipynb))

.PHONY: demo test coverage browser setup lab notebooks export readme site clean check-machine check-browser

demo: $(READY)  ## the main job on the embedded set; ends with a page to look at
	$(BIN)/wsss demo

test: $(READY)  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup tests

browser: check-browser $(BROWSER)  ## papers and tutorials run in JupyterLab in headless Chromium; screenshots in build/browser (takes minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m browser tests/test_browser.py

coverage: $(READY)  ## all tests, in their kernels and workers too, and the share of the package's lines that they execute
	rm -f .coverage .coverage.*
	COVERAGE_FILE=$(CURDIR)/.coverage OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -q -n 2 --dist loadgroup tests
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

setup: $(READY)  ## build .venv alone

lab: $(READY)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

notebooks: $(READY)  ## execute the library notebooks in place and clean them
	@for nb in $(NBS); do echo $$nb; WSSS_PROGRESS=off $(BIN)/jupyter nbconvert --log-level=ERROR --to notebook --execute --inplace $$nb || exit 1; $(BIN)/nbdev-clean --fname $$nb; done

export: $(READY)  ## nbs/ -> wsss_nb/
	$(BIN)/python docs/export.py

readme: $(READY)  ## published runs -> the tables of nbs/index.ipynb and nbs/results, and nbs/index.ipynb -> README.md
	$(BIN)/wsss published --write

site: $(SITE)  ## nbs/ -> _site/index.html: pages with search, from the saved outputs; they need no network
	rm -rf build/site _site
	mkdir -p build/site/source
	cp -R nbs/. CONTRIBUTING.md CHANGELOG.md LICENSE CITATION.cff docs/cite.md build/site/source
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -d build/site/cache build/site/source build/site/html
	mv build/site/html _site
	@echo "Open _site/index.html"

clean:  ## remove .venv, the site and what the runs left (recipes, published runs and *.yaml stay)
	rm -rf $(VENV) build _site *.egg-info
	find runs -mindepth 1 -maxdepth 1 ! -name recipes ! -name published ! -name '*.yaml' -exec rm -rf {} +

$(READY): settings.ini setup.py pyproject.toml | check-machine
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@echo "Installing torch, torchvision and the rest into $(VENV) (a few GB, some minutes) ..."
	$(PIP) --editable '.[dev]'
	@$(BIN)/python -c "from wsss_nb.core import check_torch_pair; check_torch_pair()"
	@touch $@

$(SITE): $(READY)
	$(PIP) --editable '.[site]'
	@touch $@

$(BROWSER): $(READY)
	$(PIP) --editable '.[browser]'
	@touch $@

check-browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || command -v google-chrome-stable >/dev/null || { echo "Chromium is missing: install it (Debian, Ubuntu: apt-get install chromium)"; exit 1; }

check-machine:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.10 or newer (Debian, Ubuntu: apt-get install python3 python3-venv python3-dev)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is too old: Python 3.10 or newer is needed; name another with make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing: install it (Debian, Ubuntu: apt-get install python3-venv)"; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { echo "A C++ compiler is missing (pydensecrf needs one): install it (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++)"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || { echo "Python.h is missing (pydensecrf needs it): install Python's headers (Debian, Ubuntu: apt-get install python3-dev; Fedora: dnf install python3-devel)"; exit 1; }
