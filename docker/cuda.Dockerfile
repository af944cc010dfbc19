# docker build --file docker/cuda.Dockerfile --tag maestro_jax:cuda .
# docker run --rm --gpus all --volume maestro_data:/data maestro_jax:cuda \
#     maestro train --gin_file runs/demo_pretrain.gin --model_dir /data/models/pretrained
#
# JAX's wheels carry CUDA: the host needs a driver and the NVIDIA container toolkit, the image no CUDA of its own.
FROM python:3.12-slim-bookworm

ENV JAX_PLATFORMS=cuda,cpu \
    MAESTRO_DATA_DIR=/data \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/maestro_jax
COPY . .
RUN pip install --constraint constraints/py312.txt '.[gpu,media,minivox]' \
    && useradd --create-home --uid 1000 maestro \
    && mkdir /data \
    && chown maestro /data

USER 1000
WORKDIR /home/maestro
VOLUME /data
CMD ["maestro", "--help"]
