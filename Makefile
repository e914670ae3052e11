# make help:    these lines.
# make compare: set everything up and answer the question on this machine.
# make test:    set everything up and run the tests.
# make docs:    build the docs site into site/.
# make package: build sdist and wheel into dist/, install the wheel elsewhere and use it.
# Flags go through ARGS:  make compare ARGS="--batch-size 64 256"
# Without ARGS, make compare takes batch sizes that two slow cores get through in under 4 minutes.

PYTHON ?= python3
STAMP := .venv/.set-up

# Where an image turns compiled modules off, each of the many processes of a run or test would compile for itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help compare test test-cluster chaos chaos-trials chaos-drivers fuzz intervals coverage oldest mutants lint docs package setup clean

help:
	@sed '/^$$/q; s/^# //' Makefile

compare: $(STAMP)
	.venv/bin/python experiments/compare.py $(if $(ARGS),$(ARGS),--batch-size 8 16 32 --seconds 0.5)

# In the order of their folders: those that start a real Ray, or the compiler, take longest, and come first. They wait much,
# so that two cores have room for three.
test: $(STAMP)
	.venv/bin/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# Needs root, and Debian's iproute2, openssh-server and rsync; without them every test says why it is skipped.
test-cluster: $(STAMP)
	.venv/bin/python -m pytest -m cluster -s -rs tests/cluster $(ARGS)

# What can die is killed, what is read is damaged, and the intervals are held against a known truth: their short forms.
# With --jobs 2 the halves of chaos run at once: each waits for most of its time.
chaos: chaos-trials chaos-drivers

chaos-trials: $(STAMP)
	.venv/bin/python benchmarks/chaos.py --checks "writers disk trials" --trials 3

chaos-drivers: $(STAMP)
	.venv/bin/python benchmarks/chaos.py --checks drivers --drivers 2

fuzz: $(STAMP)
	.venv/bin/python benchmarks/fuzz.py --minutes 0.35

intervals: $(STAMP)
	.venv/bin/python benchmarks/coverage.py --draws 2000

# Fails under what the tests are to cover of the package (pyproject.toml).
coverage: $(STAMP)
	rm -f .coverage*
	$(MAKE) test ARGS="--cov=rresnet --cov-report=term-missing:skip-covered $(ARGS)"

# The tests that start no Ray, with the oldest versions that pyproject.toml admits, in an environment of their own.
oldest: $(STAMP)
	.venv/bin/uv venv --quiet --clear --python .venv/bin/python build/oldest
	.venv/bin/uv pip install --quiet --python build/oldest/bin/python --resolution lowest-direct --editable '.[dev]'
	POLARS_ALLOW_FORKING_THREAD=1 build/oldest/bin/python -m pytest --numprocesses 2 --dist loadfile tests --ignore tests/integration --ignore tests/browser $(ARGS)

# Changes the code in a thousand small ways, one at a time: which of them does no test notice? Half an hour on 2 cores.
mutants: $(STAMP)
	.venv/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable '.[mutants]'
	.venv/bin/mutmut run $(ARGS)
	.venv/bin/mutmut results

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/bandit --quiet --recursive --configfile pyproject.toml rresnet experiments

# The variable silences what is advertised at each build. With --quiet no warning would be an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

package: $(STAMP)
	rm -rf dist
	.venv/bin/uv build --quiet
	.venv/bin/python tools/check_package.py

setup: $(STAMP)

# What every process of a run imports: compiled once here, where each would else do it for itself, for half a minute.
COMPILED := ray torch torchvision numpy pandas scipy pyarrow matplotlib sympy mpmath networkx rich tyro PIL

# uv installs in a fifth of pip's time; the environment is a plain one that pip can go on with.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("rresnet needs Python 3.11 or later, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo "Installing into .venv: a minute or two"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable '.[dev]'
	@cd .venv/lib/python3*/site-packages && ../../../bin/python -m compileall -q -j 0 -x '/(tests?|testing)/' $(COMPILED) || true
	@touch $@

clean:
	rm -rf .venv build dist mutants site .mypy_cache .pytest_cache .ruff_cache
