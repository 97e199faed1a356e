# make demo     sets up and fine-tunes a small real model, start to finish
# make test     sets up and runs every test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
UV := 0.13.9
# llama.cpp for any x86-64 with AVX2, not for this very CPU: a wheel that is built here may run elsewhere. Quantiser and reader only.
export CMAKE_ARGS := -DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/locks/llama.cmake
# Some machines are set not to keep compiled Python: each process would compile all it imports, which is half of the time of its start.
unexport PYTHONDONTWRITEBYTECODE
IMAGE ?= localhost/tunejob:cpu
BASE = $(shell sed -n 's/^ARG BASE=//p' Dockerfile)
# Many tests wait, for leases, limits and servers that do not answer: twice as many at a time as there are cores.
BUDGETS ?= keep
WORKERS ?= $(shell expr 2 \* $$(nproc))
TOOLS := k8s elsewhere benchmarks trackers
# With an NVIDIA driver the CUDA lock is installed as well, and the demo and the job run on the GPU.
GPU := $(shell command -v nvidia-smi 2>/dev/null)

.PHONY: setup demo test benchmarks long budgets k8s-test elsewhere-test tracker-test vllm-test llama-programs examples image image-pin image-tools page-tools image-lint image-sbom image-test store-test memory-test chaos pin-actions lint format lock fuzz docs clean
.DELETE_ON_ERROR:

setup: $(VENV)/.command $(VENV)/.model

$(VENV)/.packages: locks/cpu.txt locks/cuda.txt
	@echo "set-up 1/3: packages into $(VENV) (3 GB; 1 to 4 minutes, and 5 more where llama.cpp is compiled for the first time)"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV)
ifdef GPU
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r locks/cuda.txt
else
	$(BIN)/pip install --quiet --no-deps torch==$(TORCH)+cpu \
	  || $(BIN)/pip install --quiet --no-deps torch==$(TORCH)+cpu --index-url https://download.pytorch.org/whl/cpu
endif
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r locks/cpu.txt
	touch $@

$(VENV)/.command: $(VENV)/.packages pyproject.toml
	@echo "set-up 2/3: the tunejob command (5 seconds)"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.model: $(VENV)/.packages tests/smollm2.py
	@echo "set-up 3/3: SmolLM2-135M-Instruct as a local model (40 seconds)"
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.smollm2 2>$(VENV)/model.log || { cat $(VENV)/model.log; exit 1; }
	touch $@

demo: setup
	rm -rf demo-output
	$(BIN)/tunejob run schemas/examples/demo.json
	@$(BIN)/python -m tests.demo.show demo-output

# What comes after the packages waits for disk and network, or has one core busy: all at once.
test: $(VENV)/.packages
	@$(MAKE) --no-print-directory --jobs 5 setup $(TOOLS:%=.venv-%/.packages)
	TUNEJOB_BUDGETS=$(BUDGETS) $(BIN)/pytest -n $(WORKERS) --dist loadfile --durations 40

# The cases that make test leaves out because others of their kind are run.
long: setup .venv-benchmarks/.packages .venv-trackers/.packages .venv-vllm/.packages
	$(BIN)/pytest -m long

# The budgets of the test files from a run on this machine, which should be idle otherwise.
budgets:
	$(MAKE) test BUDGETS=write

# Tools of the tests in venvs of their own: they pin packages that the job pins otherwise.
.PRECIOUS: .venv-%/.packages
.venv-%/.packages: locks/tools-%.txt | $(VENV)/.packages
	$(PYTHON) -m venv --clear --without-pip .venv-$*
	VIRTUAL_ENV=.venv-$* $(BIN)/uv pip install --quiet --no-deps --require-hashes -r $<
	touch $@

# What evaluation.tasks needs, into the job's own packages.
benchmarks: setup
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r locks/benchmarks.txt

# Laid over the packages of the job: lm-eval, and the server of llama-cpp-python; experiment trackers, and a server of MLflow; vLLM.
.venv-benchmarks/.packages: locks/tools-benchmarks.txt
.venv-trackers/.packages: locks/tools-trackers.txt
.venv-vllm/.packages: locks/tools-vllm.txt
.venv-benchmarks/.packages .venv-trackers/.packages .venv-vllm/.packages: | $(VENV)/.packages
	$(PYTHON) -m venv --clear --without-pip $(@D)
	VIRTUAL_ENV=$(@D) $(BIN)/uv pip install --quiet --no-deps --require-hashes -r $<
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >$$(echo $(@D)/lib/python3*/site-packages)/job.pth
	touch $@

# A run that tells every tracker: Weights & Biases offline, Trackio, TensorBoard; and MLflow, whose server make test does without.
tracker-test: setup .venv-trackers/.packages
	$(BIN)/pytest -m "long or not long" tests/trackers

# Runs whose answers vLLM gives: its build for CPUs, 1.2 GB, which make test does without.
vllm-test: setup .venv-vllm/.packages
	$(BIN)/pytest -m "long or not long" tests/vllm

# Renders k8s/, holds it against schemas, rules and checkov; with TUNEJOB_IMAGE set, runs the pod with podman.
k8s-test: setup .venv-k8s/.packages .venv-checkov/.packages
	$(BIN)/pytest tests/k8s

# Workflows, compose files, templates of rented GPUs, held against their own readers and linters; with TUNEJOB_IMAGE set, the try-out runs.
elsewhere-test: setup .venv-elsewhere/.packages
	$(BIN)/pytest tests/elsewhere

# llama.cpp's own programs from the source whose library the lock has: with them the tests run the model card's lines. 10 minutes on two cores.
llama-programs: .cache/llama.cpp/llama-cli

.cache/llama.cpp/llama-cli: | $(VENV)/.packages
	rm -rf $(@D) && mkdir -p $(@D)/source
	$(BIN)/python locks/part.py locks/cpu.txt --only llama-cpp-python >$(@D)/lock.txt
	$(BIN)/pip download --quiet --no-deps --no-binary llama-cpp-python --require-hashes -r $(@D)/lock.txt -d $(@D)
	tar -xzf $(@D)/llama_cpp_python-*.tar.gz -C $(@D)/source --strip-components 3 --wildcards '*/vendor/llama.cpp'
	cmake -S $(@D)/source -B $(@D)/build -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DBUILD_SHARED_LIBS=OFF \
	  -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF >$(@D)/build.log
	cmake --build $(@D)/build --target llama-cli llama-completion -j $$(nproc) >>$(@D)/build.log
	mv $(@D)/build/bin/llama-completion $(@D)/build/bin/llama-cli $(@D)/
	rm -rf $(@D)/source $(@D)/build $(@D)/*.tar.gz

# The shipped examples of tunejob render, again.
examples: setup
	$(BIN)/python -m tests.elsewhere.examples

# The GPU image, where a registry can be reached; docker or podman.
image:
	docker build --build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' job/__init__.py) \
	  --build-arg REVISION=$$(git rev-parse HEAD) -t tunejob:$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' job/__init__.py) .

# Writes the digest of the base's tag into the Dockerfile. Asks the registry, and changes nothing without an answer.
image-pin:
	@digest=$$(skopeo inspect --format '{{.Digest}}' docker://$(firstword $(subst @, ,$(BASE))) \
	  || docker buildx imagetools inspect --format '{{.Manifest.Digest}}' $(firstword $(subst @, ,$(BASE)))) \
	  && expr "$$digest" : 'sha256:[0-9a-f]\{64\}$$' >/dev/null \
	  && sed -i "s|^ARG BASE=.*|ARG BASE=$(firstword $(subst @, ,$(BASE)))@$$digest|" Dockerfile && grep '^ARG BASE=' Dockerfile

# Debian packages that image-test needs; as root.
image-tools:
	apt-get install --no-install-recommends -y buildah podman runc crun catatonit conmon mmdebstrap

# A browser, in which the tests look at report.html; as root. Without one that test is skipped.
page-tools:
	apt-get install --no-install-recommends -y chromium

image-lint: .venv-image/.packages
	.venv-image/bin/hadolint Dockerfile

# dist/sbom.json, CycloneDX. With docker: docker build --target sbom --output dist .
image-sbom: setup
	$(BIN)/python -m tests.image.build cpu localhost/tunejob:sbom --target sbom --output dist

# Builds the image with buildah on a Debian base and the CPU lock, and runs it: demo, bad spec, stop signal, memory limit, strange users.
image-test: setup .venv-image/.packages .venv-k8s/.packages .venv-elsewhere/.packages
	$(BIN)/python -m tests.image.build cpu $(IMAGE)
	TUNEJOB_IMAGE=$(IMAGE) $(BIN)/pytest -rA tests/image tests/k8s tests/elsewhere/test_tryout.py

# The store's contract at any S3 endpoint: TUNEJOB_TEST_S3_URI=s3://bucket/prefix and a job's AWS_* variables.
store-test: setup
	@test -n "$(TUNEJOB_TEST_S3_URI)" || { echo "set TUNEJOB_TEST_S3_URI=s3://bucket/prefix"; exit 2; }
	$(BIN)/pytest tests/faults/test_endpoint.py

# 8 GiB through a directory, HTTP and HTTPS; needs 30 GB of disk.
memory-test: setup
	TUNEJOB_TEST_MOVED_BYTES=8589934592 $(BIN)/pytest -s --timeout 3600 tests/faults/test_memory.py

# Kills at every operation and at random times on both stores, full disks of every size, 50 stop signals: many hours. KILLS=20 runs 20 of each,
# PART=2/8 every eighth from the second on.
chaos: setup
	TUNEJOB_CHAOS=1 TUNEJOB_CHAOS_KILLS=$${KILLS:-all} TUNEJOB_CHAOS_PART=$${PART:-1/1} TUNEJOB_CHAOS_STOPS=$${STOPS:-50} $(BIN)/pytest -s --timeout 0 tests/chaos tests/faults

# Compares the pins of the workflows' actions with the tags beside them; needs github.com.
pin-actions: setup
	$(BIN)/python -m tests.elsewhere.pins

lint: $(VENV)/.packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The long slice of the spec fuzzing; a short one is part of make test.
fuzz: setup
	TUNEJOB_FUZZ_EXAMPLES=$${EXAMPLES:-20000} $(BIN)/pytest tests/fuzz

# The generated tables of README.md, schemas/README.md, schemas/guide.md and job/export/README.md: exit codes, spec, common jobs, GGUF types.
docs: setup
	$(BIN)/python -m job.reference

lock: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python locks/lock.py

clean:
	rm -rf $(VENV) .venv-* .cache demo-output
