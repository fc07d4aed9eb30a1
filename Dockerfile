# JupyterLab with everything that the lessons need, for macOS, Windows and Codespaces. Inside, the
# commands are the same: make lab, make run, make test.
#
#   docker build -t ray-vllm-workshop .
#   docker run --rm -it --shm-size=2g -p 127.0.0.1:8888:8888 \
#       -v workshop-notebooks:/home/learner/workshop/notebooks ray-vllm-workshop
#
# Open the address that it prints. The volume keeps your notebooks. Give Docker 12 GiB of memory.
# Tried: these steps in a plain Debian 12 root (debootstrap and chroot). Not tried: docker build
# itself, an arm64 machine, Codespaces.
FROM debian:bookworm-slim
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008 # the base's Debian decides; a pinned package would not outlive its mirror
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git make python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 learner
USER 1000:1000
ENV HOME=/home/learner
WORKDIR /home/learner/workshop
COPY --chown=1000:1000 . .
# Hard links from uv's cache: the packages are on the disk once. The model is converted now.
RUN sh environment.sh && .venv/bin/python -m workshop_lib.serving.models prepare
VOLUME /home/learner/workshop/notebooks
EXPOSE 8888
# All addresses of the container; the command above publishes the port on this machine only.
CMD ["make", "lab", "ARGS=--no-browser --ServerApp.ip=0.0.0.0"]
HEALTHCHECK NONE
