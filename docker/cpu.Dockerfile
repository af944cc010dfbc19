# docker build --file docker/cpu.Dockerfile --tag maestro_jax .
# docker run --rm --volume maestro_data:/data maestro_jax maestro demo --output_dir /data/demo
FROM python:3.12-slim-bookworm

ENV MAESTRO_DATA_DIR=/data \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/maestro_jax
COPY . .
RUN pip install --constraint constraints/py312.txt '.[media,minivox]' \
    && useradd --create-home --uid 1000 maestro \
    && mkdir /data \
    && chown maestro /data

USER 1000
WORKDIR /home/maestro
VOLUME /data
CMD ["maestro", "--help"]
