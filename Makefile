# make demo   the main job on a small corpus, from a bare machine with Python 3.11+
# make test   everything the README promises, about 27 minutes on 2 cores
# make test-quick   the tests that start neither Ray nor an S3 server, about 7 minutes
# make test-browser   the reports in a headless Chromium, which it installs where none is (Debian); pictures in build/pictures
# make test-alerts   the alert rules, with promtool, which it fetches where none is (Debian)
# make test-azure   the store on Azurite, which it installs; needs npm
# make test-orchestrators   the examples for Airflow and Dagster in the real ones, which it installs; about ten minutes
# make picture   the demo, then docs/report.png of its report, with Chromium
# make check  lint, format, types
# make chaos  an hour of kills, pauses and faults, each audited; writes docs/reliability.md
# make bench  the figures of docs/performance.md; benchmarks/README.md says what it needs
# make demo-models   the small models and recordings in demo/ anew, under an hour on 2 cores; needs espeak-ng
# make check-published   this project against the reference toolkit, with the published weights; asks the model hub
# make audit  known vulnerabilities of what is installed; asks the package index
# make lock   write requirements.lock anew from what pyproject.toml allows

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)

.PHONY: demo picture test test-quick test-browser test-alerts test-azure test-orchestrators check chaos bench demo-models check-published audit lock clean

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which with make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade 'pip>=24'
	$(RUN) -m pip install --quiet --requirement requirements.lock
	$(RUN) -m pip install --quiet --no-deps --editable .  # the command speech-emotion
	touch $@

demo: $(VENV)/installed
	$(RUN) -m demo.run

# many tests wait; a file's tests share what they start; with a thread for each core, torch's threads spin while they wait for one another
PYTEST_2 = OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed
	$(PYTEST_2)

test-quick: $(VENV)/installed
	$(PYTEST_2) --quick

BROWSER = $(firstword $(shell which chromium chromium-headless-shell google-chrome))

$(VENV)/browser: $(VENV)/installed
	@test -n "$(BROWSER)" \
		|| { $(SUDO) apt-get update --quiet=2 && $(SUDO) apt-get install --yes --no-install-recommends chromium-headless-shell; }
	touch $@

test-browser: $(VENV)/browser
	BROWSER=required $(RUN) -m pytest tests/analytics/test_browser.py

# the package is not installed, so that no server starts
$(VENV)/promtool: $(VENV)/installed
	rm -rf $@.parts && mkdir $@.parts
	test -n "$(shell which promtool)" && ln -s "$(shell which promtool)" $@ \
		|| { $(SUDO) apt-get update --quiet=2 && cd $@.parts && apt-get download --quiet=2 prometheus \
		&& dpkg --extract prometheus*.deb . && mv usr/bin/promtool ../promtool; }
	rm -rf $@.parts && touch $@

test-alerts: $(VENV)/promtool
	$(VENV)/promtool check rules cluster/prometheus/alerts.yaml
	$(VENV)/promtool test rules cluster/prometheus/alerts_test.yaml

build/azurite/installed:
	npm install --silent --no-audit --no-fund --prefix build/azurite azurite@3.37.0
	touch $@

test-azure: $(VENV)/installed build/azurite/installed
	AZURITE='node build/azurite/node_modules/azurite/dist/src/blob/main.js' $(RUN) -m pytest tests/storage/test_clouds.py

# each in an environment of its own, with the versions it was tried with
build/orchestrators/%/installed: examples/%.lock
	$(PYTHON) -m venv --clear build/orchestrators/$*
	build/orchestrators/$*/bin/pip install --quiet --no-deps --requirement $<
	touch $@

test-orchestrators: $(VENV)/installed build/orchestrators/airflow/installed build/orchestrators/dagster/installed
	$(RUN) -m tests.long.orchestrators

picture: $(VENV)/browser demo
	$(BROWSER) --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1100,1130 \
		--screenshot=docs/report.png demo/out/_runs/000001/report.html

check: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

chaos: $(VENV)/installed
	$(RUN) -m tests.long.chaos

bench: $(VENV)/installed
	$(RUN) -m benchmarks

demo-models: $(VENV)/installed
	@ldconfig -p | grep -q libespeak-ng || $(SUDO) apt-get install --yes espeak-ng
	$(RUN) -m tools.demo_models

# the reference toolkit and its command `speech-emotion` in an environment of their own, which sees our torch and transformers
TOOLKIT ?= git+https://github.com/NLP-UMUTeam/umuteam-speech-emotion@385902948be3f224841f749f6e581c6a1f04768b
MODES ?= audio mean concat multihead text

build/reference/installed: $(VENV)/installed
	$(RUN) -m venv --clear build/reference
	$(RUN) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(build/reference/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth"
	build/reference/bin/python -m pip install --quiet --no-deps '$(TOOLKIT)'
	touch $@

check-published: $(VENV)/installed
	$(RUN) -m tools.check_published --reachable
	$(MAKE) build/reference/installed
	$(RUN) -m tools.check_published --mode $(MODES)

audit: $(VENV)/installed
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit
	build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement requirements.lock

lock: $(VENV)/installed
	$(RUN) -m pip freeze --all --exclude pip --exclude-editable | sed 's/^torch==\([0-9.]*\).*/torch==\1/' > requirements.lock

clean:
	rm -rf $(VENV) build demo/out .mypy_cache .ruff_cache .pytest_cache
