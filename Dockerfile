# The libraries: a layer of their own, which changes only with pyproject.toml.
FROM python:3.11-slim AS libraries
# Where torch alone comes from. …/whl/cu130 brings CUDA; empty: from where every other library does.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/thinnet
WORKDIR /src
COPY pyproject.toml ./
RUN python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > all \
    && grep '^torch[^a-z]' all > torch \
    && pip() { /opt/pip/bin/pip --python /opt/thinnet/bin/python3 install -q --no-cache-dir --no-compile "$@"; } \
    && pip --no-deps ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} -r torch \
    && pip -r all
# Without what only building on them, tests, debuggers and Arrow's Flight need.
RUN cd /opt/thinnet/lib/python3.11/site-packages \
    && rm -rf torch/include torch/share torch/test setuptools* pkg_resources _distutils_hack distutils-precedence.pth \
    && find torch/bin -type f ! -name torch_shm_manager -delete \
    && rm -rf pyarrow/include pyarrow/src pyarrow/*flight* pyarrow/libarrow_python*.so pyarrow/libarrow_python*.so.*.* \
    && find . -type d -name tests -prune -exec rm -rf {} + \
    && find . -type f -name '*.p[yx][xdi]' -delete \
    && strip --strip-unneeded torch/lib/libtorch_cpu.so torch/lib/libtorch_python.so \
    && find /opt/thinnet -exec touch --no-dereference --date=2020-01-01 {} + # layers round times, and bytecode knows them

FROM libraries AS build
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN /opt/pip/bin/pip --python /opt/thinnet/bin/python3 install -q --no-cache-dir --no-compile --no-deps --target /opt/service .
COPY models /models
RUN chmod -R a+rX /models /opt/service && find /opt/service -exec touch --no-dereference --date=2020-01-01 {} +
# Loading every model proves that libraries and models fit, and leaves the bytecode of just what serving imports.
WORKDIR /
ENV PATH=/opt/service/bin:/opt/thinnet/bin:$PATH PYTHONPATH=/opt/service PYTHONPYCACHEPREFIX=/opt/bytecode
RUN thinnet models /models > /dev/null \
    && python3 -c "import http.client, service.api.server, uvicorn.lifespan.on, uvicorn.loops.auto, uvicorn.protocols.http.auto"

FROM python:3.11-slim
LABEL org.opencontainers.image.title="thinnet" \
      org.opencontainers.image.description="Mean and variance of a trained network's stochastic passes" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 thinnet \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin thinnet \
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3.11/ensurepip \
        /usr/local/lib/python3.11/site-packages/* /usr/share/python-wheels
COPY --from=libraries /opt/thinnet /opt/thinnet
COPY --from=build /opt/bytecode /opt/bytecode
COPY --from=build /opt/service /opt/service
COPY --from=build /models /models
# Nothing is written but under /tmp. In a container all addresses are not yet public: publishing the port makes them so,
# and who publishes it beyond this machine gives keys and THINNET_ALLOW_ANONYMOUS=false.
ENV PATH=/opt/service/bin:/opt/thinnet/bin:$PATH \
    PYTHONPATH=/opt/service \
    PYTHONPYCACHEPREFIX=/opt/bytecode \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    THINNET_ALLOW_ANONYMOUS=true \
    THINNET_HOST=0.0.0.0 \
    THINNET_PORT=8000 \
    THINNET_MODELS=/models
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import http.client, os; server = http.client.HTTPConnection(os.environ['THINNET_HOST'], int(os.environ['THINNET_PORT']), timeout=4); server.request('GET', '/v2/health/ready'); raise SystemExit(server.getresponse().status != 200)"]
CMD ["thinnet", "serve"]
