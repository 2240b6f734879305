# The commands that README and CI use. Each sets up what it needs first; the second time that costs nothing.
.PHONY: run setup test check fix fuzz bench lock reference

# By file, since tests of one file share what they start; in tests/conftest.py's order.
PYTEST = .venv/bin/pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder

# `exec`: a signal that make passes on, or the terminal sends, reaches the proxy and no shell in between.
run: .venv/.compiled
	@exec .venv/bin/freeapi serve

setup: .venv/.compiled

test: .venv/.dev .venv/.compiled tests/node/node_modules/.ready
	$(PYTEST)

check: .venv/.dev .venv/.compiled tests/node/node_modules/.ready
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	$(PYTEST)

fix: .venv/.dev
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

# Each target for FUZZ_S seconds; what is found, and the corpora to go on from, are in .fuzz/.
FUZZ_S ?= 60
fuzz: .venv/.dev
	@for target in tests/fuzz/fuzz_*.py; do \
		echo "$$target, $(FUZZ_S) s"; \
		FUZZ_S=$(FUZZ_S) .venv/bin/python -m tests.fuzz.$$(basename $$target .py) || exit 1; \
	done

# Against nginx and HAProxy, in about eight minutes; BENCH="streams --quick" and the like: docs/performance.md.
bench: .venv/.dev
	@scripts/debian-packages bench
	@exec .venv/bin/python -m bench $(BENCH)

# The parts of docs/ that follow from the code; a test fails where they are old.
reference: .venv/.runtime
	.venv/bin/python scripts/reference

lock:
	scripts/lock
	$(MAKE) .venv/.dev
	.venv/bin/python scripts/prices

.venv/.runtime: locks/runtime.txt pyproject.toml scripts/setup scripts/debian-packages
	@scripts/setup runtime

# Again whenever a source has changed: what has been compiled of others isn't taken.
.venv/.compiled: .venv/.runtime scripts/compile $(wildcard src/freeapi/*.py src/freeapi/*/*.py)
	@scripts/setup compile

.venv/.dev: locks/dev.txt .venv/.runtime
	@scripts/setup dev

# Left unmade where there is no Node: the tests that need it are then skipped (and fail in CI).
tests/node/node_modules/.ready: tests/node/package-lock.json scripts/setup
	@scripts/setup node
