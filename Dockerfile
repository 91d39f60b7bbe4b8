# One image for every node of a cluster, and for a single machine: `docker build --build-arg VARIANT=cuda -t post .`
# cuda takes PyTorch's wheels as the lock has them, which bring CUDA along (the machine needs the driver alone);
# cpu (default) takes those without, 5 GB less, from the index that --build-arg TORCH_CPU_INDEX=... names. Both hold exactly requirements.lock, and run as uid 1000.
FROM python:3.11.14-slim-bookworm

ARG VARIANT=cpu
ARG TORCH_CPU_INDEX=

# wget is for KubeRay's probes.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray

COPY requirements.lock /tmp/requirements.lock
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN case "$VARIANT" in \
    cuda) cp /tmp/requirements.lock /tmp/wanted ;; \
    cpu) : "${TORCH_CPU_INDEX:?names the index of PyTorch wheels without CUDA}" && grep -E '^torch(vision)?==' /tmp/requirements.lock >/tmp/torch \
        && pip install --no-cache-dir --no-deps --index-url "$TORCH_CPU_INDEX" --requirement /tmp/torch \
        && grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==' /tmp/requirements.lock >/tmp/wanted ;; \
    *) echo "VARIANT is $VARIANT, not cpu or cuda" >&2 && exit 1 ;; esac \
    && pip install --no-cache-dir --no-deps --requirement /tmp/wanted \
    && rm /tmp/requirements.lock /tmp/wanted

# register.py reads the lock: a registered model names the versions that it runs with.
COPY --chown=1000:1000 requirements.lock /home/ray/post/requirements.lock
COPY --chown=1000:1000 platform /home/ray/post/platform
COPY --chown=1000:1000 model /home/ray/post/model
COPY --chown=1000:1000 pipelines /home/ray/post/pipelines

USER 1000
WORKDIR /home/ray/post
# A model from a registry is never unpickled, and Ray's ports want the token. No EXPOSE: nothing listens by itself.
ENV MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
CMD ["python", "pipelines/train.py", "--help"]
