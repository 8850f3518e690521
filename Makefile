# Two commands matter: `make book` to read, `make test` to check. `make` alone lists them all.
PY := .venv/bin/python
# So that an interruption or a full disk is one line. With exec, make's child is what works and not a shell: to that one
# make sends the request to end that came to it.
RUN := exec $(PY) book/_tools/run.py
WORKERS ?= auto
# One worker for each processor; see tests/running/parallel.py. Bytecode is kept even where the environment says not to:
# a hundred processes would compile the package, and each worker all tests, every time anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(PY) -m pytest -q -p tests.running.parallel -n $(WORKERS) --no-loadscope-reorder
NBVAL := --nbval --nbval-current-env
PARTS := style code chapters gates cells slow
PEERS := pykeops numpyro pydantic imageio cloudpickle numba
# These ask for what is here, torch above all, in any version.
ALONE := pythae==0.1.2 pomegranate==1.1.2 apricot-select==0.6.1
PORT ?= 8000
PYTHONS ?= python3.11 python3.12 python3.13
export OMP_NUM_THREADS := 1
export PYTHON TORCH_INDEX CHAPTER ONLY UPGRADE TITLE

.DEFAULT_GOAL := help
.PHONY: help setup bench book experiments mutants serve pdf stability test test-slow slowest matrix $(PARTS:%=check-%) check-chapter execute lab lock clean new-chapter

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:
	@sh book/_tools/setup.sh

book: setup  ## build the site from the stored outputs and say where to open it
	@$(RUN) book/_tools/build.py

serve: book  ## build the site and serve it on this machine (PORT=8000)
	@$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

pdf: setup  ## print the whole book to _build/book.pdf, with Chromium
	@$(RUN) book/_tools/pdf.py

test: setup $(if $(CHAPTER),check-chapter)  ## check everything and change nothing (CHAPTER=mixture/index: one chapter)
	@exec env MAKE='$(MAKE)' $(PY) tests/running/parts.py $(if $(CHAPTER),gates+cells,style code chapters)

check-style:
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

check-code:
	@$(PYTEST) --dist loadfile --doctest-modules vaebook tests -m "not slow" --junitxml=_build/junit/code.xml

check-chapters:
	@$(PYTEST) --dist loadfile $(NBVAL) book --junitxml=_build/junit/chapters.xml

check-gates:
	@$(PYTEST) -n 0 tests/book/test_chapters.py -k '$(CHAPTER)'

check-cells:
	@$(PYTEST) -n 0 $(NBVAL) 'book/$(CHAPTER).ipynb'

check-chapter:
	@if [ -f 'book/$(CHAPTER).md' ] && [ ! -f 'book/$(CHAPTER).ipynb' ]; then \
		echo "chapter '$(CHAPTER)' was never run: make execute CHAPTER=$(CHAPTER)"; \
		exit 1; \
	elif [ ! -f 'book/$(CHAPTER).ipynb' ]; then \
		echo "no chapter '$(CHAPTER)'; there are: $$(cd book && find . -name '*.ipynb' | sed 's|^\./||; s|\.ipynb$$||' | sort | xargs)"; \
		exit 1; \
	fi

test-slow: setup  ## the tests that take minutes
	@exec env MAKE='$(MAKE)' $(PY) tests/running/parts.py slow

check-slow:
	@$(PYTEST) --dist worksteal -m slow tests --junitxml=_build/junit/slow.xml

slowest: setup  ## list the tests that took longest in the last run (STORE=1: keep what each file took)
	@$(RUN) tests/running/slowest.py $(if $(STORE),--store)

matrix: setup  ## unit tests, doctests and chapters under each of PYTHONS="python3.11 python3.12 python3.13"
	@$(RUN) tests/running/matrix.py $(PYTHONS)

execute: setup  ## run stale chapters and store their outputs (ALL=1: all; CHAPTER=mixture/index: one)
	@$(RUN) book/_tools/execute.py $(if $(ALL),--all) $(if $(CHAPTER),--chapter '$(CHAPTER)') $(if $(KEEP),--keep '$(KEEP)')

experiments: setup  ## run the long experiments again, hours in all (ONLY=name: one); goes on where it was interrupted
	@$(RUN) book/experiments/harness.py $(if $(ONLY),"$$ONLY")

bench: setup  ## time log q_agg, shards and training against other libraries (40 minutes; DEVICE=cuda: log q_agg on a graphics card); writes book/results/scale-….json, shards.json, training.json
	@mkdir -p _build && $(RUN) book/_tools/alone.py _build sh -c 'trap "exit 130" INT TERM HUP; \
		trap "trap \"\" INT TERM HUP; kill -TERM 0; wait; rm -rf _build/.bench" EXIT; run() { "$$@" & wait $$!; }; \
		export TMPDIR="$$PWD/_build/.bench/tmp"; [ -d _build/bench ] || { rm -rf _build/.bench && mkdir -p "$$TMPDIR" && \
		run $(PY) -m pip install -q --disable-pip-version-check --target _build/.bench -c requirements.txt $(PEERS) && \
		run $(PY) -m pip install -q --disable-pip-version-check --target _build/.bench --no-deps $(ALONE) && \
		rm -rf "$$TMPDIR" && mv _build/.bench _build/bench; }'
	@unset OMP_NUM_THREADS; export PYTHONPATH=_build/bench; $(RUN) tests/benchmarks/scale.py $(if $(DEVICE),--device $(DEVICE))
	@$(if $(DEVICE),,$(RUN) tests/benchmarks/shards.py)
	@$(if $(DEVICE),,export PYTHONPATH=_build/bench; $(RUN) tests/benchmarks/training.py)

mutants: setup  ## change package and tools one operator at a time and see what no test notices (a day; SAMPLE=5: of each module five such changes; ONLY='weights storage': some modules); writes book/results/mutants.json
	@$(RUN) tests/mutants/mutate.py $(if $(ONLY),--modules $(ONLY)) $(if $(SAMPLE),--sample $(SAMPLE))

stability: setup  ## change all numbers in their last digits and see how far the chapters' results move (15 minutes); writes book/results/stability.json
	@$(RUN) book/_tools/stability.py

new-chapter: setup  ## lay out NAME=practice/toy: a chapter, its claim, its experiment, and every line that lists it (TITLE='A title')
	@$(RUN) book/_tools/new_chapter.py '$(NAME)' $(if $(TITLE),--title "$$TITLE")

lab: setup  ## open JupyterLab; a chapter's .md opens as a notebook, saving writes .md and .ipynb
	@$(RUN) book/_tools/pair.py
	@exec env JUPYTER_CONFIG_PATH=book/_tools/lab $(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/book

lock: setup  ## compile requirements.txt from pyproject.toml (UPGRADE=1: with the newest versions)
	@$(RUN) book/_tools/alone.py . sh book/_tools/lock.sh

clean:  ## remove everything that was built, the environment included
	rm -rf _build build dist .venv vaebook.egg-info book/_static/mathjax .pytest_cache .ruff_cache .hypothesis
	find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
