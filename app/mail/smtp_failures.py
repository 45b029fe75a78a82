"""Failures of a conversation with a mail server, as the application's errors: what happened, and the cure."""

import smtplib
import socket
import ssl

from app.errors import AttemptFailed, Throttled, TimedOut, Unreachable
from app.mail import replies
from app.mail.smtp_client import TIMEOUTS_PER_CONVERSATION, NegativeReply
from app.text import one_line

RUNNING = "check that it runs, MAIL_SERVER and MAIL_PORT"

CURES: tuple[tuple[type[Exception], str], ...] = (
    (ssl.SSLCertVerificationError, "set MAIL_CA_FILE to its authority's PEM file, MAIL_SERVER to the name it is for"),
    (ssl.SSLEOFError, RUNNING),
    (ssl.SSLError, "check MAIL_USE_SSL, MAIL_USE_TLS and MAIL_PORT"),
    (smtplib.SMTPAuthenticationError, "check MAIL_USERNAME and MAIL_PASSWORD"),
    (smtplib.SMTPNotSupportedError, "check MAIL_USE_TLS and MAIL_USERNAME"),
    (smtplib.SMTPResponseException, "if it stays so, ask those who run it whether it takes mail from here"),
    (socket.gaierror, "check the name in MAIL_SERVER"),
    (TimeoutError, "if it is only slow, raise MAIL_TIMEOUT; a server on port 465 wants MAIL_USE_SSL"),
    (Exception, RUNNING),
)
"""Cures for a connection that failed, by the kind of error; the first that fits."""

IN_DOUBT = " It had the whole message: a copy may have arrived, and the next try carries the same Message-ID."
"""Goes behind the words of a failure after which nobody knows."""


def mail_refused(server: str, reply: NegativeReply) -> AttemptFailed:
    kind = replies.meaning(reply.code, reply.text)
    words = f"{server} answered {reply.step} with {reply.code} {reply.text}"
    return kind(words, code=reply.code, enhanced=replies.enhanced_code(reply.text))


def session_rejected(server: str, reply: smtplib.SMTPResponseException) -> AttemptFailed:
    """The server said no before it heard of this mail, so it says nothing about the mail."""
    kind = Throttled if 400 <= reply.smtp_code < 500 else Unreachable
    text = one_line(reply.smtp_error)
    words = f"{server} turned the connection down: {reply.smtp_code} {text}; {_cure(reply)}."
    return kind(words, code=reply.smtp_code, enhanced=replies.enhanced_code(text))


def connection_broken(server: str, problem: Exception, step: str, timeout_seconds: float) -> TimedOut | Unreachable:
    if isinstance(problem, TimeoutError):
        longest = TIMEOUTS_PER_CONVERSATION * timeout_seconds
        what = f"gave no answer within {timeout_seconds:g} s, or not all of them within {longest:g} s ({step})"
        return TimedOut(f"{server} {what}; {_cure(problem)}.")
    if isinstance(problem, ConnectionRefusedError):
        return Unreachable(f"{server} refused the connection; {_cure(problem)}.")
    return Unreachable(f"{server} failed ({step}): {one_line(str(problem))}; {_cure(problem)}.")


def _cure(problem: Exception) -> str:
    return next(cure for kind, cure in CURES if isinstance(problem, kind))
