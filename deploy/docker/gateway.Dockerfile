# syntax=docker/dockerfile:1
# The gateway alone, without torch: in front of engines elsewhere (`urls`).
# docker build -f deploy/docker/gateway.Dockerfile -t narrowgate .
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_CACHE_DIR=/var/cache/pip
RUN python -m venv /opt/narrowgate
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY compression compression
COPY gateway gateway
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/narrowgate/bin/python -m pip install --constraint constraints.txt '.[redis,tracing]'

FROM ${PYTHON} AS run
LABEL org.opencontainers.image.title="narrowgate" \
      org.opencontainers.image.description="LLM serving gateway, in front of engines elsewhere" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 narrowgate \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home \
       --home-dir /var/lib/narrowgate --shell /usr/sbin/nologin narrowgate
COPY --from=build /opt/narrowgate /opt/narrowgate
COPY deploy/docker/healthcheck.py /opt/narrowgate/healthcheck.py
ENV NARROWGATE_HOME=/var/lib/narrowgate \
    NARROWGATE_HOST=0.0.0.0 \
    NARROWGATE_PORT=8000 \
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
