FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN python3 -m venv /opt/thinnet \
    && /opt/thinnet/bin/pip install --no-cache-dir --no-compile .

FROM python:3.11-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin thinnet
COPY --from=build /opt/thinnet /opt/thinnet
COPY models /models
ENV PATH=/opt/thinnet/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    THINNET_HOST=0.0.0.0 \
    THINNET_MODELS=/models
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('THINNET_PORT', '8000') + '/v2/health/ready', timeout=4)"]
CMD ["thinnet", "serve"]
