# tunejob: one JSON spec in, a proven fine-tuned model out.
#
#   docker build -t tunejob:0.1.0 .                  the GPU image; with --build-arg BENCHMARKS=1 lm-eval as well
#   tests/image/build.py                             the same file on a Debian base with the CPU lock, for tests
#
# NVIDIA's -base- flavour, not -runtime-: torch brings CUDA's libraries as wheels (locks/cuda.txt), and a second set of
# them is 2 GB that nothing loads. What the base does bring are the variables that the container toolkit reads (a driver
# older than this CUDA is refused before the container starts, and only compute and utility are asked for), the forward
# compatibility libraries, and the library paths of managed Kubernetes nodes. 13.0.2 is the CUDA of the lock's torch.
# `make image-pin` prints the digest of this tag; pass BASE=…@sha256:… to build from it.
ARG BASE=docker.io/nvidia/cuda:13.0.2-base-ubuntu24.04
ARG PYTHON=python3.12

# ---------------------------------------------------------------- packages: compilers are here, and stay here
FROM ${BASE} AS packages
ARG PYTHON
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Versions float within the release of the base, which is what its security updates need.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates g++ gcc libc6-dev make "${PYTHON}" "${PYTHON}-dev" "${PYTHON}-venv" \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build

# llama.cpp for any x86-64 with AVX2, not for the machine that builds. Neither its server nor its image reader.
COPY locks/part.py locks/llama.cmake locks/build.txt locks/cuda.txt locks/benchmarks.txt locks/trackers.txt locks/
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE=/build/locks/llama.cmake"
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=cache,target=/root/.cache/pip \
    "${PYTHON}" -m venv tools \
 && tools/bin/pip install --no-deps --require-hashes -r locks/build.txt \
 && "${PYTHON}" locks/part.py locks/cuda.txt --only llama-cpp-python > llama.txt \
 && PATH="/build/tools/bin:${PATH}" tools/bin/pip wheel --no-deps --no-build-isolation --require-hashes -r llama.txt -w wheels

# BENCHMARKS=1 adds lm-eval, for evaluation.tasks; TRACKERS=1 wandb, mlflow and trackio, for tracking.
ARG BENCHMARKS=""
ARG TRACKERS=""
# TORCH is empty for the GPU image. For the CPU variant it names torch's CPU build, and the lock goes in without CUDA.
ARG TORCH=""
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=cache,target=/root/.cache/pip \
    "${PYTHON}" -m venv --without-pip /opt/tunejob \
 && "${PYTHON}" locks/part.py locks/cuda.txt --without llama-cpp-python ${TORCH:+--without-cuda} > lock.txt \
 && pip() { tools/bin/pip --python /opt/tunejob/bin/python install --no-deps --no-compile "$@"; } \
 && if [ -n "${TORCH}" ]; then pip "${TORCH}" || pip "${TORCH}" --index-url https://download.pytorch.org/whl/cpu; fi \
 && pip --require-hashes -r lock.txt \
 && if [ -n "${BENCHMARKS}" ]; then pip --require-hashes -r locks/benchmarks.txt; fi \
 && if [ -n "${TRACKERS}" ]; then pip --require-hashes -r locks/trackers.txt; fi \
 && pip wheels/*.whl

# The AGPL applications of unsloth's wheel, which the job never imports, go, and llama.cpp's second copy of its libraries.
# Bytecode is not checked against sources again, as both are read-only; a few files of the vendors' tests are not Python of
# this version, so compileall's own verdict does not count. Unsloth's generated trainers are not kept: it works all of
# them out at every import and compares them with the files it finds, so files save nothing (tests/image/README.md).
COPY locks/trim.py locks/licences.py locks/
RUN /opt/tunejob/bin/python locks/trim.py unsloth studio unsloth_cli \
 && rm -rf /opt/tunejob/lib/python3*/site-packages/include /opt/tunejob/lib/python3*/site-packages/lib \
 && mkdir -p /opt/tunejob/share/doc/tunejob \
 && /opt/tunejob/bin/python locks/licences.py > /opt/tunejob/share/doc/tunejob/NOTICE-packages.txt \
 && { /opt/tunejob/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/tunejob/lib || true; } \
 && chmod -R a+rX,go-w /opt/tunejob

# ---------------------------------------------------------------- command: a layer of its own, small where the rest is not
FROM packages AS command
COPY . .
RUN tools/bin/pip --python /opt/tunejob/bin/python install --no-deps --no-compile --no-build-isolation --no-index --root /app . \
 && /opt/tunejob/bin/python -m compileall -q --invalidation-mode unchecked-hash -s /app /app \
 && mkdir -p /app/opt/tunejob/share/doc/tunejob \
 && cp NOTICE LICENSE locks/cuda.txt /app/opt/tunejob/share/doc/tunejob/ \
 && chmod -R a+rX,go-w /app

# ---------------------------------------------------------------- bill of materials: make image-sbom
FROM command AS inspected
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=cache,target=/root/.cache/pip \
    cp -a /app/. / \
 && tools/bin/pip install --no-deps --require-hashes -r locks/tools-image.txt \
 && tools/bin/cyclonedx-py environment --output-reproducible --of JSON -o /sbom.json /opt/tunejob/bin/python
FROM scratch AS sbom
COPY --from=inspected /sbom.json /

# ---------------------------------------------------------------- the image
FROM ${BASE} AS final
ARG PYTHON
# libgomp is llama.cpp's. Compilers stay for a GPU: Triton compiles one C module against Python's headers when it meets
# one, and torch.compile calls g++ (seen on an H200: for a graph with a number that changes).
# hadolint ignore=DL3008
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates g++ gcc libc6-dev libgomp1 "${PYTHON}" "${PYTHON}-dev" \
 && apt-get purge -y --auto-remove curl git sudo wget \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
 && find /usr/lib -name 'libpython*.a' -delete \
 && find / -xdev -perm /6000 -type f -exec chmod a-s {} + \
 && useradd --uid 10001 --gid 0 --no-create-home --home-dir /scratch/home --shell /usr/sbin/nologin tunejob \
 && install -d -o 10001 -g 0 -m 0775 /scratch
COPY --from=packages /opt/tunejob /opt/tunejob
COPY --from=command /app /

# Everything that is written is below /scratch (and /tmp), so that any user id may run it over a read-only root. USER
# names one for uids that are in no passwd file.
ENV PATH=/opt/tunejob/bin:${PATH} \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1 \
    USER=tunejob HOME=/scratch/home XDG_CACHE_HOME=/scratch/cache \
    HF_HOME=/scratch/cache/huggingface \
    TRITON_HOME=/scratch/cache TRITON_CACHE_DIR=/scratch/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/scratch/cache/inductor CUDA_CACHE_PATH=/scratch/cache/cuda \
    UNSLOTH_COMPILE_LOCATION=/scratch/cache/unsloth \
    MPLCONFIGDIR=/scratch/cache/matplotlib NUMBA_CACHE_DIR=/scratch/cache/numba \
    TUNEJOB_WORKDIR=/scratch/work TUNEJOB_DEVICE=gpu
ARG BASE
ARG VERSION=""
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="tunejob" \
      org.opencontainers.image.description="One JSON spec in, a proven fine-tuned model out" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE}"
USER 10001:0
WORKDIR /scratch
ENTRYPOINT ["/opt/tunejob/bin/tunejob"]
CMD ["run", "/etc/tunejob/spec.json"]
