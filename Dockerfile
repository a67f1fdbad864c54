# Letterbook in a container: built as a wheel, run as nobody's user, with what it keeps in /data.
# tests/letterbook/test_wheel.py runs the steps of the first stage; docs/install.md says how to run the image.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY events events
COPY store store
COPY actors actors
COPY gateway gateway
COPY letterbook letterbook
RUN pip install --no-cache-dir -c constraints.txt build setuptools wheel
RUN python -m build --wheel --no-isolation --outdir /wheel .
RUN python -m venv --without-pip /opt/letterbook
RUN pip --python /opt/letterbook/bin/python install --no-cache-dir -c constraints.txt /wheel/letterbook-*.whl

FROM python:3.11-slim-bookworm
# A fixed uid, so that volumes and secrets can be given to it by number.
RUN groupadd --system --gid 10025 letterbook \
 && useradd --system --uid 10025 --gid 10025 --no-create-home --home-dir /data --shell /usr/sbin/nologin letterbook \
 && install -d -o letterbook -g letterbook -m 0700 /data
COPY --from=build /opt/letterbook /opt/letterbook
# The environment wins over a configuration file: what stands here is what a container decides.
ENV PATH=/opt/letterbook/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    LETTERBOOK_SERVER_HOST=0.0.0.0 \
    LETTERBOOK_SERVER_PORT=8000 \
    LETTERBOOK_STORAGE_DB_PATH=/data/letterbook.db \
    LETTERBOOK_STORAGE_KEY_FILE=/data/letterbook.key
WORKDIR /data
VOLUME /data
USER 10025:10025
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 CMD ["letterbook", "health"]
ENTRYPOINT ["letterbook"]
CMD ["serve"]
