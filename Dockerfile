# One server, two builds:
#
#   docker build --target cpu  -t pilothouse:cpu .
#   docker build --target cuda -t pilothouse:cuda .     (run with --gpus all)
#
# The compiler stays in the images: torch.compile and vLLM's kernels build code for the machine they run on.

FROM python:3.11.14-slim-bookworm AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Debian removes a package's old versions from its archive, so a pinned one soon stops building.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 pilothouse \
    && install -d -o 10001 -g 10001 /home/pilothouse/.cache /home/pilothouse/.local /home/pilothouse/.local/state \
        /home/pilothouse/.local/state/pilothouse
ENV VENV=/opt/pilothouse \
    PATH=/opt/pilothouse/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1

# The locked packages, a layer of their own: they change seldom and are nearly all of the image.
FROM base AS packages-cpu
WORKDIR /src
COPY requirements requirements
RUN PILOTHOUSE_DEVICE=cpu requirements/setup.sh engine

FROM base AS packages-cuda
WORKDIR /src
COPY requirements requirements
RUN PILOTHOUSE_DEVICE=cuda requirements/setup.sh engine

# The project as a wheel, built where the build backend is.
FROM packages-cpu AS wheel
COPY LICENSE README.md pyproject.toml ./
COPY server server
COPY steering_vectors steering_vectors
COPY probes probes
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM packages-cuda AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-deps /wheel/*.whl
USER 10001
WORKDIR /home/pilothouse
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["pilothouse", "serve"]
CMD ["--host", "0.0.0.0"]

# The last stage is what a plain `docker build .` makes.
FROM packages-cpu AS cpu
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-deps /wheel/*.whl
USER 10001
WORKDIR /home/pilothouse
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["pilothouse", "serve"]
CMD ["--host", "0.0.0.0"]
