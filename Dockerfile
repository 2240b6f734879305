# syntax=docker/dockerfile:1
# The gateway in a container: `docker build -t freeapi . && docker run --rm -p 8080:8080 freeapi`.
#
# Built from the locks and nothing else; the embedded model is in it. Steps are in exec form, so that
# no shell is needed, and so that tests/deploy/test_image.py can do them without a container engine.
# Nothing in it belongs to the user that it runs as, but /data: it works with a read-only root file
# system, without capabilities and with no-new-privileges.

FROM python:3.13-slim-bookworm AS build
WORKDIR /build
RUN ["python", "-m", "venv", "--without-pip", "/opt/freeapi"]
COPY locks/runtime.txt locks/runtime.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    ["python", "-m", "pip", "--python", "/opt/freeapi/bin/python", "install", "--no-deps", "--require-hashes", "--requirement", "locks/runtime.txt"]
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/root/.cache/pip \
    ["python", "-m", "pip", "--python", "/opt/freeapi/bin/python", "install", "--no-deps", "--no-build-isolation", "."]
# What only the line above needs.
RUN ["python", "-m", "pip", "--python", "/opt/freeapi/bin/python", "uninstall", "--yes", "editables", "hatchling", "packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers"]

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="chatgpt-freeapi" \
      org.opencontainers.image.description="Share your OpenAI keys with anyone: a fast, private proxy that keeps to your budget" \
      org.opencontainers.image.licenses="MIT"
# libgomp1: the embedded model's threads. No version: Debian keeps only its newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/freeapi /opt/freeapi
# An image that couldn't start isn't made. It also leaves the compiled standard library behind, which
# the base image comes without and a read-only root couldn't keep.
RUN ["/opt/freeapi/bin/freeapi", "version"]
# TMPDIR: the embedded model's socket; memory that can be written to however little else can.
ENV HOST=0.0.0.0 \
    PORT=8080 \
    FREEAPI_DATA_DIR=/data \
    TMPDIR=/dev/shm
# The ledger's place, and the only thing here that belongs to the user below.
RUN ["install", "--directory", "--mode=0700", "--owner=65532", "--group=65532", "/data"]
# freeapi.toml and .env are looked for here.
WORKDIR /etc/freeapi
VOLUME /data
EXPOSE 8080
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["/opt/freeapi/bin/python", "-I", "-c", "import os; from http.client import HTTPConnection as C; c = C('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["/opt/freeapi/bin/freeapi"]
CMD ["serve"]
