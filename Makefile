# The verbs of people and CI alike: install, demo, stack, shadow-traffic, vllm-env, vllm-demo, test,
# dashboards-check, pictures, lint, bench.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 8000
RECIPE ?= int4
COMPUTING := $(addprefix tests/,project benchmarks compression conformance contracts deploy engine)
# Files that hold tests that need the machine for themselves; tests/conftest.py knows them, too.
ALONE := tests/gateway/test_measured_times.py tests/gateway/test_random_leaves.py tests/grafana/test_live.py
FILES_AT_A_TIME = $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder -n
MODEL ?= smollm2
PROMETHEUS_PORT ?= 9090
ALERTMANAGER_PORT ?= 9093
CACHE := $(or $(NARROWGATE_HOME),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/narrowgate)
VLLM_ENV := $(CACHE)/vllm

.PHONY: install demo stack shadow-traffic vllm-env vllm-demo test dashboards-tools dashboards-check pictures lint bench bench-peers clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Narrowgate needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[embedded,dev]'
	touch $@

demo: install
	@$(BIN)/narrowgate serve --model $(MODEL) --recipe $(RECIPE) --port $(PORT) $(if $(SHADOW),--shadow $(SHADOW))

# The same with Prometheus and Alertmanager beside it; CONFIG=FILE takes a settings file instead of MODEL.
stack: install
	@$(BIN)/python -m deploy.stack --port $(PORT) --prometheus-port $(PROMETHEUS_PORT) --alertmanager-port $(ALERTMANAGER_PORT) -- $(if $(CONFIG),--config $(CONFIG),--model $(MODEL) --recipe $(RECIPE) $(if $(SHADOW),--shadow $(SHADOW)))

# Small varied requests for a running demo, until its verdict is ok or drift.
shadow-traffic: install
	$(BIN)/python -m benchmarks.shadow.live --port $(PORT)

# The page and the dashboards as they were during some minutes of the demo, into docs/pictures.
pictures: install
	$(BIN)/python -m benchmarks.pictures

# vLLM in an environment of its own; where there is no wheel of it, a file says why.
vllm-env: $(VLLM_ENV)/.installed

$(VLLM_ENV)/.installed: deploy/vllm/requirements-cpu.txt
	deploy/vllm/make-env $(VLLM_ENV) $(PYTHON)
	@if test -d $(VLLM_ENV); then touch $@; fi

vllm-demo: install vllm-env
	@$(BIN)/narrowgate serve --model $(MODEL) --recipe $(RECIPE) --engine vllm --vllm-options enforce-eager --port $(PORT)

# Some files at a time: first what computes, then what serves and scrapes and mostly waits, then what
# starts vLLM; last, one after the other, what holds only where nothing else keeps the machine busy.
# A part that fails does not keep the next ones from being seen. Two builds side by side have more threads
# than there are processors: those that wait for another one must leave it theirs (OMP_WAIT_POLICY).
test: install vllm-env
	$(BIN)/python -m compression.kernels
	@export OMP_WAIT_POLICY=passive; failed=0; \
	OMP_NUM_THREADS=1 $(FILES_AT_A_TIME) 2 -m "not alone and not vllm" $(COMPUTING) || failed=1; \
	OMP_NUM_THREADS=1 $(FILES_AT_A_TIME) 3 -m "not alone and not vllm" $(addprefix --ignore=,$(COMPUTING)) || failed=1; \
	unset OMP_WAIT_POLICY; $(FILES_AT_A_TIME) 2 -m vllm tests/vllm tests/contracts || failed=1; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m alone $(ALONE) || failed=1; \
	exit $$failed

# Without these servers the tests of dashboards-check would be skipped, and it would pass.
dashboards-tools:
	@for found in promtool:prometheus prometheus:prometheus amtool:prometheus-alertmanager; do \
	  command -v $${found%%:*} >/dev/null || \
	    { echo "dashboards-check needs $${found%%:*}: apt-get install $${found##*:}" >&2; exit 1; }; done
	@command -v prometheus-alertmanager >/dev/null || command -v alertmanager >/dev/null || \
	  { echo "dashboards-check needs prometheus-alertmanager: apt-get install prometheus-alertmanager" >&2; exit 1; }

# The generated files are up to date; what panels and rules ask exists and holds.
dashboards-check: dashboards-tools install
	$(BIN)/python -m grafana --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/grafana

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks.demo

# Other compressors at work on the demo model, then all side by side.
bench-peers: install
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.frontier

clean:
	rm -rf $(VENV) build dist
