# Three images of one build:
#   slim   gateway, tokenizer, autoscaler         docker build --target slim -t moonshard:0.1.0-slim .
#   torch  vision, attention, expert              docker build --target torch -t moonshard:0.1.0-torch .
#   nano   everything, with the nano checkpoint   docker build --target nano -t moonshard:0.1.0-nano .
# Each runs as user 10001, writes only to /tmp, and takes the module as its argument: docker run IMAGE services.tokenizer
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS base
# Small allocations stay in the heap, gRPC takes no lock for forks, crashes in native code say where: as
# services/local/environment.py. Code is compiled at build time, and nothing tries to write beside it.
ENV MALLOC_MMAP_THRESHOLD_=2000000000 \
    MALLOC_TRIM_THRESHOLD_=8000000000 \
    MALLOC_TOP_PAD_=67108864 \
    GRPC_ENABLE_FORK_SUPPORT=0 \
    TOKENIZERS_PARALLELISM=false \
    PYTHONFAULTHANDLER=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOME=/tmp
RUN groupadd --gid 10001 moonshard && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin moonshard
WORKDIR /

# The wheel: protobuf modules and the CPU kernels compiled, the checkpoint of the nano image left out.
FROM base AS wheel
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY kernels kernels
COPY services services
COPY gateway gateway
RUN find services/nano -type f ! -name "*.py" -delete && python -m pip wheel --no-deps --wheel-dir /wheels .

# What others wrote lies below what we wrote: a new version of ours is a layer of a few megabytes.
FROM base AS slim-packages
RUN --mount=type=bind,source=pyproject.toml,target=/src/pyproject.toml \
    --mount=type=bind,source=requirements.lock,target=/src/requirements.lock \
    python -c "import tomllib; project = tomllib.load(open('/src/pyproject.toml', 'rb'))['project']; \
    print(*project['dependencies'], sep='\n')" > /tmp/requirements.txt \
    && python -m pip install --constraint /src/requirements.lock --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt

FROM slim-packages AS torch-packages
# Where pip finds torch itself; what torch needs comes from PyPI. Empty: PyPI too, whose x86-64 wheels are for CUDA. For
# CPUs name PyTorch's index of CPU wheels.
ARG TORCH_INDEX_URL=""
# Triton compiles its launchers with a C compiler at run time. A CPU image may do without: --build-arg C_COMPILER=""
ARG C_COMPILER="gcc libc6-dev"
RUN if [ -n "${C_COMPILER}" ]; then apt-get update && apt-get install --yes --no-install-recommends ${C_COMPILER} \
    && rm -rf /var/lib/apt/lists/*; fi
RUN --mount=type=bind,source=pyproject.toml,target=/src/pyproject.toml \
    --mount=type=bind,source=requirements.lock,target=/src/requirements.lock \
    python -c "import tomllib; project = tomllib.load(open('/src/pyproject.toml', 'rb'))['project']; \
    print(*project['optional-dependencies']['torch'], sep='\n')" > /tmp/requirements.txt \
    && python -m pip install --no-deps ${TORCH_INDEX_URL:+--index-url ${TORCH_INDEX_URL}} "$(grep '^torch=' /tmp/requirements.txt)" \
    && python -m pip install --constraint /src/requirements.lock --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt

FROM slim-packages AS slim
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels python -m pip install --no-deps --no-index /wheels/*.whl
USER 10001:10001
# -P: a folder `services` where the process happens to stand is not ours.
ENTRYPOINT ["python", "-P", "-m"]
CMD ["gateway"]

FROM torch-packages AS torch
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels python -m pip install --no-deps --no-index /wheels/*.whl
ENV TRITON_CACHE_DIR=/tmp/triton
USER 10001:10001
ENTRYPOINT ["python", "-P", "-m"]
CMD ["services.attention"]

FROM torch AS nano
COPY services/nano /models/nano
ENV MOONSHARD_MODEL=/models/nano
CMD ["gateway"]
