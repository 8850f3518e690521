# Two commands matter: `make book` to read, `make test` to check. `make` alone lists them all.
PY := .venv/bin/python
PYTEST := $(PY) -m pytest
PARTS := style site code chapters
PEERS := pykeops numpyro
PORT ?= 8000
export OMP_NUM_THREADS := 1
export PYTHON TORCH_INDEX CHAPTER ONLY

.DEFAULT_GOAL := help
.PHONY: help setup bench book experiments mutants serve pdf test test-slow $(PARTS:%=check-%) check-chapter execute lab lock clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:
	@sh book/_tools/setup.sh

book: setup  ## build the site from the stored outputs and say where to open it
	@$(PY) book/_tools/build.py

serve: book  ## build the site and serve it on this machine (PORT=8000)
	@$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

pdf: setup  ## print the whole book to _build/book.pdf, with Chromium
	@$(PY) book/_tools/pdf.py

test: setup  ## check everything and change nothing (CHAPTER=mixture/index: one chapter)
	@failed=; for part in $(if $(CHAPTER),chapter,$(PARTS)); do \
		printf '\n======== %s ========\n' $$part; \
		$(MAKE) --no-print-directory check-$$part || failed="$$failed $$part"; \
	done; \
	printf '\n'; \
	if [ -n "$$failed" ]; then echo "make test FAILED in:$$failed"; exit 1; fi; echo "make test passed"

check-style:
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

check-site:
	@$(PY) book/_tools/build.py --output _build/check

check-code:
	@$(PYTEST) -q --doctest-modules vaebook tests -m "not slow" --junitxml=_build/junit/code.xml

check-chapters:
	@$(PYTEST) -q --nbval --nbval-current-env book --junitxml=_build/junit/chapters.xml

check-chapter:
	@if [ ! -f 'book/$(CHAPTER).ipynb' ]; then \
		echo "no chapter '$(CHAPTER)'; there are: $$(cd book && find . -name '*.ipynb' | sed 's|^\./||; s|\.ipynb$$||' | sort | xargs)"; \
		exit 1; \
	fi
	@status=0; \
	$(PYTEST) -q tests/book/test_chapters.py -k '$(CHAPTER)' || status=1; \
	$(PYTEST) -q --nbval --nbval-current-env 'book/$(CHAPTER).ipynb' || status=1; \
	exit $$status

test-slow: setup  ## the tests that take minutes
	@$(PYTEST) -q -m slow --junitxml=_build/junit/slow.xml tests

execute: setup  ## run stale chapters and store their outputs (ALL=1: all; CHAPTER=mixture/index: one)
	@$(PY) book/_tools/execute.py $(if $(ALL),--all) $(if $(CHAPTER),--chapter '$(CHAPTER)') $(if $(KEEP),--keep '$(KEEP)')

experiments: setup  ## run the long experiments again, hours in all (ONLY=name: one); goes on where it was interrupted
	@$(PY) book/experiments/harness.py $(if $(ONLY),"$$ONLY")

bench: setup  ## time log q_agg against other libraries (15 minutes); writes book/results/scale.json
	@[ -d _build/bench ] || $(PY) -m pip install -q --disable-pip-version-check --target _build/bench -c requirements.txt $(PEERS)
	@env -u OMP_NUM_THREADS PYTHONPATH=_build/bench $(PY) tests/benchmarks/scale.py

mutants: setup  ## change the package one operator at a time and see what no test notices (40 minutes); writes book/results/mutants.json
	@$(PY) tests/mutants/mutate.py

lab: setup  ## open JupyterLab; a chapter's .md opens as a notebook, saving writes .md and .ipynb
	@JUPYTER_CONFIG_PATH=book/_tools/lab $(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/book

lock: setup  ## compile requirements.txt anew from pyproject.toml
	@sh book/_tools/lock.sh

clean:  ## remove everything that was built, the environment included
	rm -rf _build build dist .venv vaebook.egg-info book/_static/mathjax .pytest_cache .ruff_cache .hypothesis
	find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
