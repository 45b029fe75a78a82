"""Django's defaults, but for connections that stay open, as SQLAlchemy's pool keeps the other peers'."""

import os
from pathlib import Path
from urllib.parse import urlsplit

_url = urlsplit(os.environ["DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url.path[1:],
        "USER": _url.username,
        "HOST": _url.hostname,
        "PORT": _url.port,
        "CONN_MAX_AGE": None,
    }
}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django_domain_events", "peers.django_shop"]
ROOT_URLCONF = "peers.django_shop.wsgi"
WSGI_APPLICATION = "peers.django_shop.wsgi.app"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.jinja2.Jinja2",
        "DIRS": [Path(__file__).resolve().parents[3] / "app" / "mail" / "templates"],
        "OPTIONS": {"trim_blocks": True},
    }
]
EMAIL_HOST, EMAIL_PORT = "127.0.0.1", int(os.environ["MAIL_PORT"])
DEFAULT_FROM_EMAIL = "orders@localhost"
SECRET_KEY = "measured, and gone"  # noqa: S105 - nothing is signed
ALLOWED_HOSTS = ["*"]
USE_TZ = True
