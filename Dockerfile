# The service in one image, on SQLite or PostgreSQL:
#
#   docker build -t orders .
#   docker run -p 8000:8000 -v orders:/srv/instance orders
#
# /srv/instance holds the SQLite file and, without MAIL_SERVER, the mails. A stop first ends what has begun: give it time
# (docker stop -t 45, or stop_grace_period: 45s). It speaks plain HTTP and trusts its clients to be quick: let a proxy stand
# before it, as in deploy/.

FROM python:3.13-slim AS build
RUN python -m venv --without-pip /opt/venv
COPY requirements.lock .
# Ready-made wheels only, each with the hash it had when the versions were chosen. psycopg and Celery are among them.
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check \
    --require-hashes --only-binary :all: --requirement requirements.lock

FROM python:3.13-slim
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin orders
WORKDIR /srv
RUN install --directory --owner=orders --group=orders instance
COPY --from=build /opt/venv /opt/venv
COPY config.py wsgi.py celery_app.py gunicorn.conf.py ./
COPY migrations migrations
COPY app app
RUN python -m compileall -q app migrations *.py  # else each start of a process compiles it again

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WEB_HOST=0.0.0.0 \
    PORT=8000 \
    LOG_FORMAT=json
USER 10001
VOLUME /srv/instance
EXPOSE 8000
STOPSIGNAL SIGTERM
# Alive, not ready: while mail is held up /readyz tells so to those who watch, but orders are taken, and to replace the
# container would cure nothing. With no proxy: http_proxy is for calls that leave the container.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s CMD python -c "\
from urllib.request import ProxyHandler, build_opener; \
build_opener(ProxyHandler({})).open('http://127.0.0.1:$PORT/healthz', timeout=5)"
CMD ["gunicorn", "wsgi:app"]
