# docker build -t ckptconv .
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD":/work ckptconv inspect RUN
# --build-arg EXTRAS='[remote]' adds extras; --build-arg PIP_INDEX_URL=... takes a mirror.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
ARG EXTRAS=""
ARG PIP_INDEX_URL=""
COPY pyproject.toml README.md LICENSE /src/
COPY ckptconv /src/ckptconv
RUN python -m venv /opt/ckptconv \
    && /opt/ckptconv/bin/pip install --no-cache-dir "/src${EXTRAS}" \
    && /opt/ckptconv/bin/ckptconv --version

FROM python:${PYTHON}-slim
COPY --from=build /opt/ckptconv /opt/ckptconv
# Nobody in there needs root; whoever --user names has no home, and configs by hub id are kept where anybody writes.
ENV PATH=/opt/ckptconv/bin:$PATH HF_HOME=/tmp/huggingface PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["ckptconv"]
CMD ["--help"]
