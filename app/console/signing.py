"""Sign in, sign out, and the choice of the language."""

from flask import redirect, request, session
from flask.typing import ResponseReturnValue

from app.bus.operate import MOST_NAME_CHARACTERS
from app.console import access, languages
from app.console.pages import go_to, local_target, page
from app.current import settings
from app.text import shortened


def show_sign_in() -> ResponseReturnValue:
    if settings().console_password is None or (access.visitor() is not None and "next" not in request.args):
        return go_to("show_flow")
    return page("sign_in.html", target=request.args.get("next", ""), wrong=False, name="")


def sign_in() -> ResponseReturnValue:
    """A wrong password is answered with the form again, and 401. Raises Problem with 429."""
    name = shortened(request.form.get("name", "").strip())[:MOST_NAME_CHARACTERS] or "unnamed"
    target = request.form.get("next", "")
    if access.sign_in(name, request.form.get("password", "")):
        return redirect(local_target(target), 303)
    return page("sign_in.html", target=target, wrong=True, name=name), 401


def sign_out() -> ResponseReturnValue:
    session.clear()
    return go_to("show_sign_in")


def choose_language(language: str) -> ResponseReturnValue:
    response = redirect(local_target(request.args.get("next")), 303)
    if language in languages.LANGUAGES:
        response.set_cookie(
            languages.COOKIE,
            language,
            languages.COOKIE_SECONDS,
            secure=request.is_secure,
            httponly=True,
            samesite="Lax",
        )
    return response
