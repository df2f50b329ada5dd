# syntax=docker/dockerfile:1
# vLLM on NVIDIA GPUs, and the gateway in an environment of its own beside it.
# docker build -f deploy/docker/vllm.Dockerfile -t narrowgate:vllm .
# docker run --gpus all --shm-size 8g …
ARG VLLM=vllm/vllm-openai:v0.32.0

FROM ${VLLM} AS build
# Artifacts are made on processors, so the gateway's side needs no second CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_CACHE_DIR=/var/cache/pip
RUN /usr/bin/python3 -m venv /opt/narrowgate
WORKDIR /src
COPY constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/narrowgate/bin/python -m pip install --constraint constraints.txt --no-deps \
    --index-url ${TORCH_INDEX} torch
COPY pyproject.toml README.md LICENSE ./
COPY compression compression
COPY gateway gateway
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/narrowgate/bin/python -m pip install --constraint constraints.txt \
    '.[embedded,redis,tracing]'

FROM ${VLLM} AS run
LABEL org.opencontainers.image.title="narrowgate-vllm" \
      org.opencontainers.image.description="LLM serving gateway with vLLM on GPUs" \
      org.opencontainers.image.licenses="Apache-2.0"
# If the base image moves its interpreter, the build ends here and not the first start.
RUN /usr/bin/python3 -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("vllm"))' \
    && groupadd --gid 10001 narrowgate \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home \
       --home-dir /var/lib/narrowgate --shell /usr/sbin/nologin narrowgate
COPY --from=build /opt/narrowgate /opt/narrowgate
COPY deploy/docker/healthcheck.py /opt/narrowgate/healthcheck.py
# vLLM, Triton and the hub keep their caches below the home directory or here.
ENV NARROWGATE_HOME=/var/lib/narrowgate \
    NARROWGATE_HOST=0.0.0.0 \
    NARROWGATE_PORT=8000 \
    NARROWGATE_VLLM_PYTHON=/usr/bin/python3 \
    HOME=/var/lib/narrowgate \
    HF_HOME=/var/lib/narrowgate/huggingface \
    XDG_CACHE_HOME=/var/lib/narrowgate/cache \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/narrowgate
VOLUME /var/lib/narrowgate
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/opt/narrowgate/bin/python", "/opt/narrowgate/healthcheck.py"]
ENTRYPOINT ["/opt/narrowgate/bin/narrowgate"]
CMD ["serve", "--config", "/etc/narrowgate/settings.yaml"]
