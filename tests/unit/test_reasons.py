"""Reasons of one kind become equal."""

import time

import pytest

from app.bus.reasons import generalised


@pytest.mark.parametrize(
    "reason, expected",
    [
        # a reply's code says what kind of failure it is; what follows names the mail
        ("550 5.1.1 <user17@x.example>: no such user", "550 5.1.1 <address>: no such user"),
        ("550 5.1.1 user17@x.example: no such user", "550 5.1.1 <address>: no such user"),
        ("450 4.7.1 greylisted, come back in 300 seconds", "450 4.7.1 greylisted, come back in <n> seconds"),
        ("451 try again, ref 4XyzQ12", "451 try again, ref <id>"),
        ("127.0.0.1:25 answered RCPT with 550 5.1.1 no", "<address>:<n> answered RCPT with 550 5.1.1 no"),
        ("mx.example:25 answered DATA with 451 busy", "mx.example:<n> answered DATA with 451 busy"),
        ("come back in 450 seconds", "come back in <n> seconds"),
        ("550", "550"),
        ("5501 is no code", "<n> is no code"),
        # who was asked
        ("mail.example:25 refused the connection", "mail.example:<n> refused the connection"),
        ("127.0.0.1:2525 refused the connection", "<address>:<n> refused the connection"),
        ("[::1]:25 refused the connection", "[<address>]:<n> refused the connection"),
        ("fe80::1 and 2001:db8:0:0:0:0:0:1 are away", "<address> and <address> are away"),
        ("at 12:30:05 it was away", "at <n>:<n>:<n> it was away"),
        # ids
        ("order 1001 of user u17: no", "order <n> of user <id>: no"),
        ("event 0199a2b3-1111-7abc-8def-0123456789ab failed", "event <id> failed"),
        ("3.5 is more than 2", "<n> is more than <n>"),
        # quoted words; an apostrophe is no quote
        ("KeyError: 'half'", "KeyError: '…'"),
        ('no receiver named "tell sales" is connected', 'no receiver named "…" is connected'),
        ("it can't be, 'a b' isn't one", "it can't be, '…' isn't one"),
        (
            "there is no address for user 'ann', and ann@users.example can't be one: run 'flask users'",
            "there is no address for user '…', and <address> can't be one: run '…'",
        ),
        # what is the same in all stays
        ("not on Sundays", "not on Sundays"),
        ("地址不存在：用户 42", "地址不存在：用户 <n>"),
        ("", ""),
    ],
)
def test_what_differs_from_one_delivery_to_the_next_is_taken_out(reason: str, expected: str) -> None:
    assert generalised(reason) == expected


def test_a_second_time_changes_nothing_more() -> None:
    once = generalised("550 5.1.1 <user17@x.example>: 'no' such user 17, ref 4XyzQ12 at 127.0.0.1")
    assert generalised(once) == once


@pytest.mark.parametrize("part", ["a", "'", "' ", "1.", ":", "a:", "@", "a@", "-", "a-", "1.2.3.", "'a ", "::1", "<"])
def test_no_reason_takes_long(part: str) -> None:
    """A mail server chooses the words, and a hundred thousand of them are looked at."""
    began = time.process_time()
    for _ in range(10):
        generalised((part * 2000)[:2000])
    assert time.process_time() - began < 1
