# make serve: set up .venv, serve the embedded models.  make test: every check and test.  make check: the fast ones.
# OCR=1 also installs the reader of text. PYTHON=python3.12 chooses the interpreter, DEVICE=cpu|gpu what is installed (default: gpu where nvidia-smi answers).
PYTHON ?= python3
BIN := .venv/bin
# pytest keeps the modules whose asserts it rewrote, 6 s for each worker, and every child process what it compiled
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := serve
.PHONY: serve test check fast types unit slow engines laws drill install install-dev loadtest bench bench-others bench-fan-out
.PHONY: bench-many-servers bench-scale bench-gateways bench-turns bench-repeats bench-columns chaos hostile soak gpu-check
.PHONY: bench-store bench-batch
.PHONY: k8s-check k8s-config k8s-drill audit screenshots tables lock clean parity parity-generic

serve: install
	@exec $(BIN)/diptych serve $(ARGS)

# processes of tests: more than the two cores of CI, as many tests wait for time to pass
WORKERS ?= 3
# what tests need, by their markers: pyproject.toml
NEEDS := ray or engine or browser or cluster

# tests with engines wait half of the time, for processes to start: one process of slow tests runs meanwhile
test: fast
	$(MAKE) --jobs=2 --output-sync=target WORKERS=1 slow engines
	$(MAKE) drill

# tests that share a server or an engine stay together
engines: install-dev
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "($(NEEDS)) and not cluster"

# and the random laws again, with a hundred draws in place of 25
slow: install-dev
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "(slow or hypothesis) and not ($(NEEDS))" --hypothesis-profile=hundred

# the random laws with 500 draws that no run had before
laws: install-dev
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "hypothesis and not ($(NEEDS))" --hypothesis-profile=anew $(ARGS)

drill: install-dev
	$(BIN)/pytest -m cluster

check: fast

fast: install-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(MAKE) --jobs=2 types unit

types: install-dev # mypy has one thread
	$(BIN)/mypy --strict

unit: install-dev
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not (slow or $(NEEDS))"

install:
	@$(PYTHON) deployments/install.py

install-dev:
	@$(PYTHON) deployments/install.py --dev

# beside vLLM's own server; loadtest/README.md says what it measures and what ARGS there are
bench: install-dev
	$(BIN)/python -m loadtest.bench $(ARGS)

# one request to N models beside N requests to N servers of vLLM
bench-many-servers: install-dev
	$(BIN)/python -m loadtest.bench many-servers $(ARGS)

# environments of their own for what the benchmark compares with: their requirements quarrel with ours
OTHERS := build/others
bench-others: install-dev
	$(PYTHON) -m venv $(OTHERS)/litellm
	$(OTHERS)/litellm/bin/pip install --quiet 'litellm[proxy]'
	$(PYTHON) -m venv $(OTHERS)/rayllm
	echo $(CURDIR)/.venv/lib/python3*/site-packages > $$(echo $(OTHERS)/rayllm/lib/python3*/site-packages)/ours.pth
	$(OTHERS)/rayllm/bin/pip install --quiet --no-deps pyarrow pandas python-dateutil pytz smart_open wrapt fsspec jsonref

# what a fan-out adds to its slowest model, with simulated engines
bench-fan-out: install-dev
	$(BIN)/python -m loadtest.bench fan-out $(ARGS)

# many simulated models with many replicas on pretended GPUs
bench-scale: install-dev
	$(BIN)/python -m loadtest.bench scale $(ARGS)

# many replicas and several gateways, without Ray
bench-gateways: install-dev
	$(BIN)/python -m loadtest.bench gateways $(ARGS)

# eight simulated models on a GPU that holds three: one hot, the others asked now and then
bench-turns: install-dev
	$(BIN)/python -m loadtest.bench turns $(ARGS)

# several questions about each picture to two replicas: kept to the one that knows it, or spread
bench-repeats: install-dev
	$(BIN)/python -m loadtest.bench repeats $(ARGS)

# four kinds of columns in one fan-out, each killed in turn; ARGS="--ocr FOLDER": RapidOCR installed there
bench-columns: install-dev
	$(BIN)/python -m loadtest.bench columns $(ARGS)

# diptych run over an object store (moto, in build/others/moto), killed again and again
bench-store: install-dev
	$(BIN)/python -m loadtest.bench store $(ARGS)

# diptych batch on two raylets beside diptych run, on the same cores
bench-batch: install-dev
	$(BIN)/python -m loadtest.bench batch $(ARGS)

# faults done to a server of simulated models, and what its clients saw
chaos: install-dev
	$(BIN)/python -m loadtest.bench chaos $(ARGS)

# requests made to stop, fill or fool the server, and what an ordinary client beside each of them saw
hostile: install-dev
	$(BIN)/python -m loadtest.bench hostile $(ARGS)

# half an hour of well and badly behaved clients: whether memory or anything else creeps
soak: install-dev
	$(BIN)/python -m loadtest.bench soak $(ARGS)

# what Serve takes, made of each overlay's serve.yaml
k8s-config: install-dev
	for file in k8s/overlays/*/serve.yaml; do \
	  $(BIN)/python -m deployments.deploy $$file --print > $${file%/*}/applications.yaml || exit 1; done

# the manifests: all that can be known without a cluster, and cpu-demo on one of network namespaces where that can be had
# (root, iproute2). CRDS: a folder of KubeRay's and others' definitions
CRDS ?= ../shared/kuberay
CHECKOV := build/checkov/bin/checkov
HELM := build/helm
# the others take eight minutes more: `make k8s-drill ARGS=--simulated`
CHECKED_STEPS := watch,change,kill_gateway,kill_models
k8s-check: install-dev $(CHECKOV) $(HELM)
	$(BIN)/python -m k8s.check --crds $(CRDS) --checkov $(CHECKOV) --helm $(HELM) $(ARGS)
	PYTHONPATH=tests $(BIN)/python -m cluster.drill --simulated --steps $(CHECKED_STEPS) || [ $$? -eq 2 ]

$(CHECKOV): # in an environment of its own: its requirements quarrel with ours
	$(PYTHON) -m venv build/checkov
	build/checkov/bin/pip install --quiet checkov==3.3.30

$(HELM): install-dev # Helm's engine as a library, 250 MB: apart, as nothing else needs it
	[ -d $@ ] || $(BIN)/pip install --quiet --no-deps --target $@ helm-python-sdk==0.2.2

# what images hold, as CycloneDX into build/sbom, and what is known against it
AUDIT := build/audit/bin
audit: $(AUDIT)/pip-audit
	mkdir -p build/sbom
	for lock in front cpu gpu; do \
	  $(AUDIT)/cyclonedx-py requirements deployments/locks/$$lock.txt --validate -o build/sbom/$$lock.json && \
	  $(AUDIT)/pip-audit --no-deps --disable-pip --strict -r deployments/locks/$$lock.txt || exit 1; \
	done

$(AUDIT)/pip-audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0

# the same cluster with the toys: five minutes. ARGS="--image NAME": in containers of an image that podman has built
k8s-drill: install-dev
	PYTHONPATH=tests $(BIN)/python -m cluster.drill $(ARGS)

# what only a GPU can show, in ten minutes and offline, into build/gpu/report.md; ARGS="--parts a,c", ARGS=--rehearse: on a CPU
gpu-check: install-dev
	$(BIN)/python -m loadtest.gpu_check $(ARGS)

# users on a running server for a minute, into build/loadtest/report.html; ARGS: loadtest/README.md
loadtest: install-dev
	$(BIN)/python -m locust --config loadtest/locust.conf --host $(or $(URL),http://127.0.0.1:8000) $(ARGS)

# every state of the page at three widths, light and dark, into build/screenshots; the README's pictures too
screenshots: install-dev
	$(BIN)/python tests/pages/screenshots.py $(or $(URL),http://127.0.0.1:8000) build/screenshots

# every architecture of the catalogue beside transformers, in three processes with a table each
parity: parity-generic
	PARITY=all $(BIN)/pytest -m engine tests/engines/test_parity.py -k equals
	PARITY=all $(BIN)/pytest -m engine tests/engines/test_pictures.py

# of these the architectures of chat models, by their families' entries or by a folder's name alone
parity-generic: install-dev
	PARITY=all $(BIN)/pytest -m engine tests/engines/test_named.py -k transformers

# the tables of READMEs that follow from the program: models, tasks, settings
tables: install-dev
	$(BIN)/python tests/test_readme.py

lock: install-dev
	$(BIN)/pip install --quiet uv
	PATH="$(BIN):$$PATH" $(BIN)/python deployments/lock.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
