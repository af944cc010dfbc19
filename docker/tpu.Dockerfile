# docker build --file docker/tpu.Dockerfile --tag maestro_jax:tpu .
# docker run --rm --privileged --net host maestro_jax:tpu \
#     maestro train --gin_file runs/paper_voxpopuli.gin --model_dir gs://bucket/runs/xl --data_dir /data
#
# On a TPU VM, once per host. MAESTRO_MULTIHOST joins the hosts of a slice. Root, because libtpu opens /dev/accel* or /dev/vfio.
FROM python:3.12-slim-bookworm

ENV JAX_PLATFORMS=tpu,cpu \
    MAESTRO_DATA_DIR=/data \
    MAESTRO_MULTIHOST=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/maestro_jax
COPY . .
RUN pip install --constraint constraints/py312.txt '.[media,tpu]' \
    && mkdir /data

WORKDIR /root
VOLUME /data
CMD ["maestro", "--help"]
