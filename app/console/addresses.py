"""The form that corrects an address: an order's or a user's."""

from collections.abc import Callable

from flask import flash, request
from flask.typing import ResponseReturnValue
from flask_babel import gettext

from app.console.pages import read_form, wrong_fields
from app.http import Problem
from app.request_models import EmailRequest


def keep_address(
    keep: Callable[[str], bool],
    told: str,
    back: ResponseReturnValue,
    ask_again: Callable[[dict[str, str], dict[str, str]], str],
) -> ResponseReturnValue:
    """Keep the address that was sent, say that by ``told`` where it is another one, and answer with ``back``.

    ``ask_again`` makes the page anew, from what was given and what is wrong with it: that is said beside the field.
    """
    try:
        email = read_form(EmailRequest, "email").email
    except Problem as problem:
        return ask_again({"email": request.form.get("email", "")}, wrong_fields(problem)), 422
    flash(told if keep(email) else gettext("This was the address before."))
    return back
