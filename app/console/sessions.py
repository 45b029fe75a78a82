"""Sessions in a signed cookie, for the console's own paths only: API requests pay nothing for them."""

import contextlib
import os
import secrets
from pathlib import Path
from tempfile import NamedTemporaryFile

from flask import Flask, Request, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface

from app.http import is_api
from config import Settings

KEY_FILE = "secret-key"


class ConsoleSessions(SecureCookieSessionInterface):
    """Flask's sessions, by a cookie that scripts can't read and that no foreign page's request carries."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        if is_api(request.path):
            return None
        if not app.secret_key:
            settings: Settings = app.extensions["settings"]
            app.secret_key = kept_key(settings.instance_path)
        return super().open_session(app, request)

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure


def kept_key(folder: Path) -> str:
    """The key of the instance folder, made once and for its owner's eyes only; several processes may race to make it.

    Raises OSError where the folder takes no file: set SECRET_KEY.
    """
    file = folder / KEY_FILE
    with contextlib.suppress(FileNotFoundError):
        return file.read_text("ascii")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with NamedTemporaryFile("w", encoding="ascii", prefix=f".{KEY_FILE}-", dir=folder) as draft:
        draft.write(secrets.token_urlsafe(48))
        draft.flush()
        os.fsync(draft.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: its key counts
            os.link(draft.name, file)
    return file.read_text("ascii")
