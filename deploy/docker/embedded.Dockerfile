# syntax=docker/dockerfile:1
# The gateway with the embedded engine on processors; also the engine alone (`narrowgate engine`).
# docker build -f deploy/docker/embedded.Dockerfile -t narrowgate:embedded .
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
# PyPI's torch for Linux brings CUDA, gigabytes of it; here is the build for processors.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_CACHE_DIR=/var/cache/pip
RUN python -m venv /opt/narrowgate
WORKDIR /src
COPY constraints.txt ./
# Apart from the rest, so that a change of the source fetches no torch; its dependencies follow below.
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/narrowgate/bin/python -m pip install --constraint constraints.txt --no-deps \
    --index-url ${TORCH_INDEX} torch
COPY pyproject.toml README.md LICENSE ./
COPY compression compression
COPY gateway gateway
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/narrowgate/bin/python -m pip install --constraint constraints.txt \
    '.[embedded,redis,tracing]'

FROM ${PYTHON} AS run
LABEL org.opencontainers.image.title="narrowgate-embedded" \
      org.opencontainers.image.description="LLM serving gateway with its own engine for processors" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 narrowgate \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home \
       --home-dir /var/lib/narrowgate --shell /usr/sbin/nologin narrowgate
COPY --from=build /opt/narrowgate /opt/narrowgate
COPY deploy/docker/healthcheck.py /opt/narrowgate/healthcheck.py
# Checkpoints of the hub, artifacts and caches of libraries all go into the volume.
ENV NARROWGATE_HOME=/var/lib/narrowgate \
    NARROWGATE_HOST=0.0.0.0 \
    NARROWGATE_PORT=8000 \
    HF_HOME=/var/lib/narrowgate/huggingface \
    XDG_CACHE_HOME=/var/lib/narrowgate/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/narrowgate
VOLUME /var/lib/narrowgate
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["/opt/narrowgate/bin/python", "/opt/narrowgate/healthcheck.py"]
ENTRYPOINT ["/opt/narrowgate/bin/narrowgate"]
CMD ["serve", "--config", "/etc/narrowgate/settings.yaml"]
