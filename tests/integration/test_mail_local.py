"""The backends that need no server."""

import errno
import io
import mailbox
import os
import sys
import threading
from datetime import UTC, datetime
from decimal import Decimal
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_mail import Message

from app import mail
from app.errors import Deferred, Refused, Unreachable
from app.mail import Mailer, OrderNotification, local
from config import Settings


def mailer_for(tmp_path: Path, backend: str) -> Mailer:
    return mail.init_app(Flask("mail-test"), Settings.of(mail_backend=backend, instance_path=tmp_path / "instance"))


def send(mailer: Mailer, order_id: str = "1001", **changes: Any) -> None:
    assert mailer.app is not None
    with mailer.app.app_context():
        mailer.send(notification(order_id=order_id, **changes))


def notification(**changes: Any) -> OrderNotification:
    given: dict[str, Any] = {
        "order_id": "1001",
        "user_id": "7",
        "total_price": Decimal("19.99"),
        "created_at": datetime(2026, 11, 23, 18, 7, 5, tzinfo=UTC),
        "recipient": "user@example.com",
        "event_id": "event-1001",
        "locale": "zh",
        "sender": "orders@shop.example",
    }
    return OrderNotification(**(given | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "instance" / "mail"


@pytest.fixture
def maildir(tmp_path: Path) -> Mailer:
    return mailer_for(tmp_path, "file")


def fail_with(code: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


# ---------------------------------------------------------------- file


def test_a_mail_program_finds_the_mail_in_the_maildir(maildir: Mailer, folder: Path) -> None:
    send(maildir)

    (found,) = mailbox.Maildir(folder, create=False)
    read = message_from_bytes(found.as_bytes(), policy=default)
    assert isinstance(read, EmailMessage)
    assert read["Subject"] == "订单 1001 已创建"
    assert read["To"] == "user@example.com"
    assert read["Message-ID"] == "<event-1001.order@shop.example>"
    text, html = read.get_body(("plain",)), read.get_body(("html",))
    assert text is not None
    assert "总金额：19.99" in text.get_content()
    assert html is not None
    assert "19.99" in html.get_content()
    assert list((folder / "tmp").iterdir()) == []


def test_a_person_can_read_the_file(maildir: Mailer, folder: Path) -> None:
    """With cat: nothing is encoded."""
    send(maildir, order_id="x" * 64)

    (file,) = (folder / "new").iterdir()
    lines = file.read_text(encoding="utf-8").splitlines()
    assert f"Subject: 订单 {'x' * 64} 已创建" in lines
    assert "To: user@example.com" in lines
    assert f"订单号：{'x' * 64}" in lines
    assert b"\r" not in file.read_bytes()


def test_a_subject_cannot_break_out_of_the_file(maildir: Mailer, folder: Path) -> None:
    """What looks like an encoded line break stays the text that it is."""
    subject = "=?utf-8?q?=0ABcc:_evil@example.com?= \\1 \\n"
    message = notification().message()
    message.subject = subject
    assert maildir.app is not None
    with maildir.app.app_context():
        maildir.send(message)

    (file,) = (folder / "new").iterdir()
    assert f"Subject: {subject}\n" in file.read_text(encoding="utf-8")
    assert "\nBcc" not in file.read_text(encoding="utf-8")


def test_a_message_without_a_subject_keeps_its_text(maildir: Mailer, folder: Path) -> None:
    assert maildir.app is not None
    with maildir.app.app_context():
        maildir.send_message("", ["user@example.com"], "Subject: not a header\n")
    (file,) = (folder / "new").iterdir()
    assert "\nSubject: not a header\n" in file.read_text()


def test_mails_at_once_are_kept_apart(tmp_path: Path, folder: Path) -> None:
    """Also when two processes make the folder at the same time."""
    mailers = [mailer_for(tmp_path, "file") for _ in range(4)]
    threads = [threading.Thread(target=send, args=(mailer, str(number))) for mailer in mailers for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(list((folder / "new").iterdir())) == 20


def test_a_mail_is_on_the_disk_under_its_final_name_when_it_counts_as_sent(
    maildir: Mailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(maildir)
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().parent.name)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    send(maildir)
    assert synced == ["tmp", "mail"]  # the file while it is a draft, then the folder "new" with its name


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, Deferred), (errno.EDQUOT, Deferred), (errno.EROFS, Unreachable)]
)
def test_a_mail_that_cannot_be_written_leaves_nothing_and_names_the_place(
    maildir: Mailer, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    send(maildir)
    monkeypatch.setattr(os, "fsync", fail_with(code))
    with pytest.raises(kind, match=f"{folder}.*{os.strerror(code)}"):
        send(maildir)

    assert list((folder / "tmp").iterdir()) == []
    assert len(list((folder / "new").iterdir())) == 1


def test_a_folder_that_cannot_be_made_names_the_cure(maildir: Mailer, folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file is in the way")
    with pytest.raises(Unreachable, match="INSTANCE_PATH"):
        send(maildir)
    with pytest.raises(Unreachable, match="INSTANCE_PATH"):
        maildir.check()


def test_a_folder_that_was_deleted_is_made_again(maildir: Mailer, folder: Path) -> None:
    send(maildir)
    for file in (folder / "new").iterdir():
        file.unlink()
    for name in ("tmp", "cur", "new"):
        (folder / name).rmdir()
    send(maildir)
    assert len(list((folder / "new").iterdir())) == 1


def test_check_leaves_nothing_in_the_maildir(maildir: Mailer, folder: Path) -> None:
    maildir.check()
    assert [list((folder / name).iterdir()) for name in ("tmp", "new", "cur")] == [[], [], []]


def test_others_cannot_read_the_mail(maildir: Mailer, folder: Path) -> None:
    send(maildir)
    (file,) = (folder / "new").iterdir()
    assert file.stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------- console


@pytest.mark.parametrize(
    ("locale", "subject"), [("zh", "Subject: 订单 1001 已创建"), ("en", "Subject: Order 1001 was created")]
)
def test_the_console_shows_headers_and_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], locale: str, subject: str
) -> None:
    send(mailer_for(tmp_path, "console"), locale=locale)

    shown = capsys.readouterr().out.splitlines()
    assert subject in shown
    assert "To: user@example.com" in shown
    assert any(line.endswith("2026-11-23 18:07:05 UTC") for line in shown)
    assert not any("<table" in line for line in shown)


def test_the_console_prints_on_an_ascii_terminal_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    send(mailer_for(tmp_path, "console"))
    assert b"Subject: \\u8ba2\\u5355 1001" in buffer.getvalue()


def test_a_closed_console_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    with pytest.raises(Unreachable, match="MAIL_BACKEND"):
        send(mailer_for(tmp_path, "console"))


# ---------------------------------------------------------------- memory, and what all share


def test_the_memory_backend_shows_what_was_sent(tmp_path: Path) -> None:
    mailer = mailer_for(tmp_path, "memory")
    send(mailer, "1")
    send(mailer, "2")
    assert [message.subject for message in mailer.outbox] == ["订单 1 已创建", "订单 2 已创建"]


def test_the_memory_backend_forgets_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "OUTBOX_LIMIT", 2)
    mailer = mailer_for(tmp_path, "memory")
    for number in range(3):
        send(mailer, str(number))
    assert [message.subject for message in mailer.outbox] == ["订单 1 已创建", "订单 2 已创建"]


@pytest.mark.parametrize("backend", ["file", "console", "memory"])
def test_every_backend_announces_what_it_sent_and_refuses_what_it_cannot(tmp_path: Path, backend: str) -> None:
    mailer = mailer_for(tmp_path, backend)
    with mailer.record_messages() as sent:
        send(mailer)
        with pytest.raises(Refused):
            send(mailer, recipient="nobody")
        message = notification().message()
        message.body = "\ud800"
        assert mailer.app is not None
        with mailer.app.app_context(), pytest.raises(Refused):
            mailer.send(message)
    assert len(sent) == 1


@pytest.mark.parametrize("backend", ["file", "console", "memory"])
def test_every_backend_can_be_checked_and_closed(tmp_path: Path, backend: str) -> None:
    mailer = mailer_for(tmp_path, backend)
    mailer.check()
    mailer.close()
    send(mailer)


def test_flask_mails_own_state_is_there(tmp_path: Path) -> None:
    mailer = mailer_for(tmp_path, "memory")
    assert mailer.app is not None
    assert mailer.app.extensions["mailer"] is mailer
    assert mailer.app.extensions["mail"].default_sender == "orders@localhost"
    assert mailer.app.config["MAIL_PORT"] == 25
    with mailer.app.app_context():
        mailer.app.extensions["mail"].send(Message("Hello", ["user@example.com"], "text"))
    assert len(mailer.outbox) == 1


def test_starting_opens_nothing(tmp_path: Path) -> None:
    mailer_for(tmp_path, "file")
    assert not (tmp_path / "instance").exists()
