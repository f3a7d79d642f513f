# docker build -t ckptconv .
# docker run --rm -v "$PWD":/work ckptconv inspect RUN
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
ENV PATH=/opt/ckptconv/bin:$PATH
WORKDIR /work
ENTRYPOINT ["ckptconv"]
CMD ["--help"]
