"""Flask extension: ``init_app`` adds the console's pages to an application.

A page's module, and with it Flask-Babel, is imported when somebody first opens one: a dispatcher, and a service whose
console nobody opens, load none of it.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from flask import Blueprint, Flask, Response, current_app, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, NotFound

from app.console import access
from app.console.sessions import ConsoleSessions
from app.console.turns import HEADER, Turns
from app.errors import AppError
from app.http import PAGE_POLICY, answer_problem, is_api

ROUTES = (
    ("GET", "/", "flow.show_flow"),
    ("GET", "/flow/live", "flow.show_live"),
    ("POST", "/flow/place", "flow.place_orders"),
    ("POST", "/flow/break-mail", "flow.break_mail"),
    ("POST", "/flow/kill-dispatcher", "flow.kill_dispatcher"),
    ("GET", "/orders", "orders.show_orders"),
    ("GET", "/orders/<order_id>", "orders.show_order"),
    ("GET", "/orders.csv", "orders.download_csv"),
    ("GET", "/orders.json", "orders.download_json"),
    ("POST", "/orders/<order_id>/resend", "orders.resend_notification"),
    ("POST", "/orders/<order_id>/email", "orders.set_order_email"),
    ("POST", "/orders/<order_id>/deliveries/<int:delivery_id>/retry", "orders.retry_order_delivery"),
    ("POST", "/orders/<order_id>/deliveries/<int:delivery_id>/discard", "orders.discard_order_delivery"),
    ("GET", "/orders/<order_id>/mail/<event_id>", "mails.show_mail"),
    ("GET", "/orders/<order_id>/mail/<event_id>/html", "mails.show_mail_html"),
    ("GET", "/users", "users.show_users"),
    ("GET", "/users/<user_id>", "users.show_user"),
    ("POST", "/users/<user_id>/email", "users.set_user_email"),
    ("POST", "/users/<user_id>/send-skipped", "users.send_skipped"),
    ("GET", "/events", "events.show_events"),
    ("GET", "/events.json", "events.download_events"),
    ("GET", "/events/types", "events.show_catalogue"),
    ("GET", "/events/<event_id>", "events.show_event"),
    ("GET", "/deliveries", "deliveries.show_deliveries"),
    ("GET", "/deliveries/act", "deliveries.ask_to_act"),
    ("POST", "/deliveries/act", "deliveries.act"),
    ("GET", "/acts", "acts.show_acts"),
    ("GET", "/acts/live", "acts.show_acts_live"),
    ("GET", "/acts/<int:act_id>", "acts.show_act"),
    ("GET", "/acts/<int:act_id>/live", "acts.show_act_live"),
    ("POST", "/acts/<int:act_id>/abort", "acts.abort_act"),
    ("POST", "/acts/<int:act_id>/go-on", "acts.go_on"),
    ("GET", "/mailbox", "mailbox.show_mailbox"),
    ("GET", "/mailbox/<name>", "mailbox.show_kept_mail"),
    ("GET", "/mailbox/<name>/html", "mailbox.show_kept_html"),
    ("GET", "/retries", "retries.show_retries"),
    ("GET", "/system", "system.show_system"),
    ("GET", "/system/doctor", "system.show_findings"),
    ("POST", "/system/<receiver>/pause", "system.pause_receiver"),
    ("POST", "/system/<receiver>/resume", "system.resume_receiver"),
    ("POST", "/system/<receiver>/probe", "system.probe_receiver"),
    ("GET", "/sign-in", "signing.show_sign_in"),
    ("POST", "/sign-in", "signing.sign_in"),
    ("POST", "/sign-out", "signing.sign_out"),
    ("GET", "/language/<language>", "signing.choose_language"),
)
"""Every page: the method, the path, and the module and function in this folder that answers it. The function's name is
the endpoint. A GET asks for the right to look, a POST for the right to operate; see access.OPEN for the exceptions."""


def init_app(app: Flask) -> None:
    """Add the console to an application whose extensions hold ``bus``, ``database`` and ``settings``."""
    app.session_interface = ConsoleSessions()
    app.config.update(SESSION_COOKIE_NAME="console", SESSION_COOKIE_SAMESITE="Strict")
    app.extensions["console_turns"] = Turns(app.extensions["database"].clock.monotonic)
    blueprint = Blueprint(
        "console", __name__, template_folder="templates", static_folder="static", static_url_path="/console/static"
    )
    for method, path, function in ROUTES:
        endpoint = function.partition(".")[2]
        blueprint.add_url_rule(path, endpoint, later(function), methods=[method])
    blueprint.before_request(access.guard)
    blueprint.after_request(_set_headers)
    blueprint.register_error_handler(HTTPException, later("pages.answer_error"))
    blueprint.register_error_handler(AppError, later("pages.answer_error"))
    blueprint.app_errorhandler(NotFound)(_answer_not_found)
    app.register_blueprint(blueprint)


def later(name: str) -> Callable[..., Any]:
    """Calls ``module.function`` of this folder, which is imported when it is first called, with Babel at hand."""
    module, _, function = name.partition(".")

    def call(*given: Any, **named: Any) -> Any:
        import_module(f"{__package__}.languages").prepare()
        return getattr(import_module(f"{__package__}.{module}"), function)(*given, **named)

    call.__name__ = function
    return call


def _answer_not_found(error: NotFound) -> ResponseReturnValue:
    if is_api(request.path) or request.blueprint == "api":
        return answer_problem(error)
    access.recognise()
    return _set_headers(current_app.make_response(later("pages.answer_error")(error)))


def _set_headers(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
    response.headers["Referrer-Policy"] = "same-origin"  # else a form would be sent with the Origin "null"
    if "X-Live" in request.headers and response.status_code < 400:
        turns: Turns = current_app.extensions["console_turns"]
        response.headers[HEADER] = f"{turns.pause_seconds():.2f}"
    if request.endpoint != "console.static":
        response.headers.setdefault("Cache-Control", "private, no-cache")
        response.vary.update(("Cookie", "Accept-Language"))
    elif response.status_code == 200 and "v" in request.args:
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"  # its address has its digest
    return response
