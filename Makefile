# Two commands do everything: `make demo` and `make test`. Both build .venv first if it is not there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY  := $(VENV)/.ready
SITE   := $(VENV)/.ready-site
BROWSER := $(VENV)/.ready-browser
PIP    := PYTHONWARNINGS=ignore:Editable $(BIN)/python -m pip install -qq
NEW    := .venv-newest
NEWEST  = PYTHONWARNINGS=ignore:Editable $(NEW)/bin/python -m pip install -qq --upgrade --upgrade-strategy eager
TORCH   = $(foreach r,$(filter torch%,$(shell sed -n 's/^requirements = //p' settings.ini)),'$(r)')
CRF     = '$(shell sed -n 's/^crf_requirements = //p' settings.ini)'
TORCH_INDEX ?=
LOCKED  = $(if $(LOCK),-c $(VENV)/constraints.txt)
# one thread for each of the two processes, and torch's memory is kept between steps as in kernels (engine/warm): a training in a test takes a quarter less; modules are compiled once for the hundreds of processes, whatever the environment says
QUICK   = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
# $(call alive,command): the command, and a line every 20 s that it goes on
alive   = (s=0; while sleep 20 3>&- && kill -0 $$$$; do s=$$((s + 20)); echo "  ... $$s s" >&3; done) 3>&1 >/dev/null 2>&1 </dev/null & t=$$!; $(1); rc=$$?; kill $$t; exit $$rc
NBS    := $(sort $(wildcard nbs/*.ipynb nbs/data/*.ipynb nbs/nets/*.ipynb nbs/refine/*.ipynb nbs/papers/*.ipynb nbs/tutorials/*.ipynb nbs/results/*.ipynb))

.PHONY: demo test test-slow test-cuda coverage browser setup crf newest lab notebooks export readme site clean check-machine check-browser

demo: $(READY)  ## the main job on the embedded set; ends with a page to look at
	$(BIN)/wsss demo

test: $(READY)  ## all tests but those of `make test-slow` and `make browser`; PYTEST='-k icd --durations=10': options of pytest
	$(QUICK) $(BIN)/python -m pytest -q -n 2 $(PYTEST) tests

test-slow: $(READY)  ## what proves endurance: runs killed by the dozen, every launch of several processes, a published run made again, the browser where `make browser` has set it up; minutes, for a schedule
	$(QUICK) $(BIN)/python -m pytest -q -n 2 -m 'slow$(if $(wildcard $(BROWSER)), or browser)' $(PYTEST) tests

test-cuda: $(READY)  ## every test that can, on the graphics card of this machine; without one a line says so. `make test` there runs the rest with device=auto
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "No CUDA device here, so nothing is tested on one (torch.cuda.is_available() is false)"; exit 0; }; \
	$(QUICK) $(BIN)/python -m pytest -q -m cuda $(PYTEST) tests

browser: check-browser $(BROWSER)  ## papers and tutorials run in JupyterLab in headless Chromium; screenshots in build/browser (takes minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m browser tests/test_browser.py

coverage: $(READY)  ## all tests, in their kernels and workers too, and the share of the package's lines that they execute
	rm -f .coverage .coverage.*
	COVERAGE_FILE=$(CURDIR)/.coverage WSSS_WARM=0 $(QUICK) $(BIN)/coverage run -m pytest -q -n 2 tests
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

setup: crf $(READY)  ## build .venv alone; TORCH_INDEX=URL takes torch and torchvision from there, for example a CPU build; LOCK=1: the versions of the published runs, constraints.txt
	@echo "$(VENV) is ready: make demo, make lab, $(BIN)/wsss"

newest: check-machine  ## tests, and with them the notebooks, against the newest version of everything, in .venv-newest; for a schedule
	@echo "Building $(NEW): the newest version of each package of settings.ini, whatever its upper bound (6 GB on disk, 2 to 10 minutes and the network); then the tests, which execute the notebooks"
	@$(PYTHON) -m venv --clear $(NEW)
	@$(call alive,$(NEWEST) pip && $(NEWEST) $$($(PYTHON) docs/newest.py names) && $(NEWEST) --no-deps --editable .)
	@$(NEWEST) $$($(PYTHON) docs/newest.py names crf) >$(NEW)/crf.log 2>&1 || echo "pydensecrf2 could not be built, see $(NEW)/crf.log: the dense CRF runs in torch"
	@$(NEW)/bin/python docs/newest.py versions
	@touch $(NEW)/.installed $(NEW)/.ready
	@$(MAKE) --no-print-directory VENV=$(NEW) test

lab: $(READY)  ## open JupyterLab on a copy of the notebooks in lab/; EDIT=1: on the notebooks themselves; LAB='--no-browser --port 9000': its options
	@$(BIN)/python docs/lab.py $(if $(EDIT),--edit) $(LAB)

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
	rm -rf $(VENV) $(NEW) build _site *.egg-info
	find runs -mindepth 1 -maxdepth 1 ! -name recipes ! -name published ! -name '*.yaml' -exec rm -rf {} +

$(INSTALLED): settings.ini setup.py pyproject.toml | check-machine
	@echo "Building $(VENV): torch, Jupyter and the rest; 2 to 10 minutes and what 3 GB take to download (6 GB on disk, 4 of them CUDA's libraries where torch comes with them)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(if $(LOCK),$(PYTHON) docs/lock.py $(BIN)/python constraints.txt $(VENV)/constraints.txt)
	@$(call alive,$(torch_alone))
	@$(call alive,$(PIP) $(LOCKED) --editable '.[dev]')
	@touch $@

$(READY): $(INSTALLED) $(if $(wildcard $(READY)),,crf)
	@$(BIN)/python -c "from wsss_nb.base.core import check_torch_pair; check_torch_pair()"
	@touch $@

# torch and torchvision from the index that was named; else, where no GPU is, a CPU build if the index has one of both
define torch_alone
if [ -n "$(TORCH_INDEX)" ]; then $(PIP) $(LOCKED) --index-url "$(TORCH_INDEX)" $(TORCH); \
elif [ -n "$(LOCK)" ] || command -v nvidia-smi >/dev/null || [ "$$(uname -sm)" != 'Linux x86_64' ]; then true; \
else cpu() { $(BIN)/python -m pip index versions $$1 2>/dev/null | grep -o '[0-9][0-9.]*+cpu' | head -n 1; }; vision=$$(cpu torchvision); \
	if [ -n "$$vision" ] && [ -n "$$(cpu torch)" ]; then echo "No GPU here (nvidia-smi is missing): the CPU build of torch, torchvision $$vision"; $(PIP) "torchvision==$$vision"; \
	else echo "No GPU here (nvidia-smi is missing), and the package index has no CPU build of both torch and torchvision: CUDA's libraries, 4 GB, come along; from an index that has one: make setup TORCH_INDEX=https://..."; fi; fi
endef

# The dense CRF in C++ has no wheel: it is built where a compiler is, and each `make setup` tries again
crf: $(INSTALLED)
	@$(BIN)/python -c 'import pydensecrf.densecrf' 2>/dev/null || { why=; \
	[ -n "$$CXX" ] || command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || why='no C++ compiler (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++)'; \
	$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || why="$${why:-no Python.h (Debian, Ubuntu: apt-get install python3-dev; Fedora: dnf install python3-devel)}"; \
	[ -n "$$why" ] || echo "Building pydensecrf2, the dense CRF in C++ (40 s)"; \
	$(BIN)/python -m pip install $${why:+--only-binary=:all:} $(CRF) >$(VENV)/crf.log 2>&1 || \
	echo "$${why:-pydensecrf2 could not be built, see $(VENV)/crf.log}: the dense CRF runs in torch, which agrees and takes 0.53 s instead of 0.30 s an image; once that is mended: make setup"; }

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
