"""SQLite's file under a running service: deleted, moved or replaced, and no acknowledged order that nobody finds."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.db import Database, Transaction, sqlite_module
from app.db.sqlite_file import DatabaseFile
from app.errors import DatabaseUnavailable
from app.orders.models import User
from tests.support.api import Api, listening
from tests.support.service import CHECKOUT, LIMIT
from tests.support.shop import Shop


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    return sqlite_url


@pytest.fixture
def api(shop: Shop) -> Api:
    shop.dispatcher.heartbeat()
    return Api(shop)


def wal(file: Path) -> Path:
    return Path(f"{file}-wal")


def delete(file: Path, _: Path) -> None:
    file.unlink()


def move(file: Path, _: Path) -> None:
    file.rename(file.with_name("moved.db"))


def replace(file: Path, backup: Path) -> None:
    """As ``cp backup new && mv new orders.db`` does."""
    new = Path(shutil.copy(backup, file.with_name("new")))
    new.rename(file)


def delete_and_make_anew(file: Path, backup: Path) -> None:
    for each in file.parent.glob("orders.db*"):
        each.unlink()
    shutil.copy(backup, file)


def move_folder(file: Path, _: Path) -> None:
    file.parent.rename(file.parent.with_name("elsewhere"))


def delete_wal(file: Path, _: Path) -> None:
    wal(file).unlink()


def replace_wal(file: Path, _: Path) -> None:
    new = Path(shutil.copy(wal(file), file.with_name("new")))
    new.rename(wal(file))


WHAT_IS_TOLD = {
    delete: "orders.db was deleted or moved",
    move: "orders.db was deleted or moved",
    replace: "orders.db was replaced",
    delete_and_make_anew: "orders.db was replaced",
    move_folder: "orders.db was deleted or moved",
    delete_wal: "orders.db-wal was deleted or moved",
    replace_wal: "orders.db-wal was replaced",
}


@pytest.mark.parametrize("deed", WHAT_IS_TOLD, ids=lambda deed: deed.__name__)
def test_another_file_than_the_opened_one_is_neither_written_nor_read(
    api: Api,
    file: Path,
    sqlite_template: Path,
    caplog: pytest.LogCaptureFixture,
    deed: Callable[[Path, Path], None],
) -> None:
    """503 at once, and one line with what happened and the cure, however many requests there are."""
    assert api.place(order_id="before").status_code == 201

    deed(file, sqlite_template)

    with listening(caplog):
        for number in range(3):
            response = api.place(order_id=f"after-{number}")
            assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
            for path in ("/api/orders/before", "/api/orders", "/api/events", "/readyz"):
                assert api.get(path).status_code == 503
    lines = [record.getMessage() for record in caplog.records]
    (line,) = [line for line in lines if line != "trouble began"]
    assert lines.count("trouble began") == 1, "which /readyz tells"
    assert line.startswith(f"answering 503: {WHAT_IS_TOLD[deed]} under the running service; nothing is stored until")
    assert line.endswith("restart the service" if "wal" in deed.__name__ else "and start it again")


def test_a_file_that_takes_the_numbers_of_a_deleted_one_is_another_file(
    shop: Shop, file: Path, sqlite_template: Path
) -> None:
    """A file system gives a number away again once nobody has its file open, and a pool may close all it has."""
    shop.place_order()
    shop.database.engine.dispose()
    delete_and_make_anew(file, sqlite_template)
    with pytest.raises(DatabaseUnavailable):
        shop.place_order("1002")


@pytest.mark.parametrize("deed", [move, replace], ids=lambda deed: deed.__name__)
def test_what_is_committed_into_a_file_that_was_replaced_meanwhile_is_not_acknowledged(
    shop: Shop, file: Path, sqlite_template: Path, deed: Callable[[Path, Path], None]
) -> None:
    def work(transaction: Transaction) -> None:
        transaction.session.add(User(user_id="1"))
        transaction.session.flush()
        deed(file, sqlite_template)

    with pytest.raises(DatabaseUnavailable) as caught:
        shop.database.transact(work)
    assert "orders.db was" in caught.value.reason


def test_it_goes_on_by_itself_when_the_file_is_back(api: Api, file: Path, sqlite_template: Path) -> None:
    """Also where another one has been in its place: nothing is lost, and nothing is done twice."""
    assert api.place(order_id="before").status_code == 201
    move(file, sqlite_template)
    assert api.place(order_id="during").status_code == 503
    replace(file, sqlite_template)
    assert api.place(order_id="during").status_code == 503

    file.with_name("moved.db").rename(file)

    assert api.place(order_id="after").status_code == 201
    api.shop.dispatch_all()
    assert [api.get(f"/api/orders/{order_id}").status_code for order_id in ("before", "during", "after")] == [
        200,
        404,
        200,
    ]
    assert len(api.shop.mailer.outbox) == 2


def test_another_file_is_taken_at_a_restart(shop: Shop, file: Path, sqlite_template: Path) -> None:
    """Not before: leases that are held in memory, and their tokens, mean nothing to it."""
    shop.place_order()
    delete_and_make_anew(file, sqlite_template)
    with pytest.raises(DatabaseUnavailable):
        shop.place_order("1002")
    shop.database.close()
    shop.place_order("1002")
    assert shop.count("orders") == 1


def test_a_lost_file_is_complete_and_its_wal_spoils_no_other_file(
    shop: Shop, file: Path, sqlite_template: Path, tmp_path: Path
) -> None:
    """SQLite mixes a WAL into whatever file it lies beside."""
    shop.place_order()
    move(file, sqlite_template)
    shutil.copy(sqlite_template, file)
    with pytest.raises(DatabaseUnavailable):
        shop.place_order("1002")

    assert orders_in(tmp_path / "lost", file.with_name("moved.db")) == 1
    assert orders_in(tmp_path / "other", file) == 0


def orders_in(folder: Path, file: Path) -> int:
    """Of a copy with what lies beside it, as a process finds it that starts after all others were killed."""
    folder.mkdir()
    for each in (file, wal(file)):
        if each.exists():
            shutil.copy(each, folder)
    with closing(sqlite_module().connect(folder / file.name)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(connection.execute("SELECT count(*) FROM orders").fetchone()[0])


OLD_PROCESS = """
import sys
from app.db import Database
from app.errors import DatabaseUnavailable
from app.orders.models import User

database = Database(sys.argv[1])
database.transact(lambda transaction: transaction.session.add(User(user_id="1")))
print("open", flush=True)
for line in sys.stdin:
    try:
        database.transact(lambda transaction: transaction.session.add(User(user_id="2")))
    except DatabaseUnavailable:
        print("lost", flush=True)
"""


@pytest.mark.parametrize("noticed", [True, False])
def test_a_process_that_ends_with_the_old_file_deletes_no_wal_of_the_new_one(
    shop: Shop, file: Path, sqlite_template: Path, noticed: bool
) -> None:
    """SQLite deletes the WAL by its name when the last connection closes: acknowledged orders would go with it."""
    shop.database.close()
    command = [sys.executable, "-c", OLD_PROCESS, f"sqlite:///{file}"]
    old = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert old.stdin is not None
    assert old.stdout is not None
    with old:
        assert old.stdout.readline() == "open\n"
        delete_and_make_anew(file, sqlite_template)
        shop.place_order()
        wal_of_the_new = wal(file).stat().st_ino
        if noticed:
            old.stdin.write("use\n")
            old.stdin.flush()
            assert old.stdout.readline() == "lost\n"
        old.stdin.close()
        assert old.wait(LIMIT) == 0
    assert wal(file).stat().st_ino == wal_of_the_new
    shop.place_order("1002")
    assert shop.count("orders") == 2


def test_a_file_that_is_replaced_while_it_is_opened_is_not_taken_for_the_new_one(
    tmp_path: Path, sqlite_template: Path
) -> None:
    path = Path(shutil.copy(sqlite_template, tmp_path / "orders.db"))

    def connect() -> Any:
        connection = sqlite_module().connect(path)
        connection.execute("PRAGMA journal_mode=wal").fetchall()
        if swaps:
            replace(path, swaps.pop())
        return connection

    swaps = [sqlite_template]
    file = DatabaseFile(path, sqlite_module(), connect)
    with pytest.raises(sqlite_module().OperationalError, match=r"orders\.db was replaced"):
        file.check()
    file.check()
    file.close()


def test_a_damaged_file_is_answered_503_with_the_cure(api: Api, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is no fault of the order's, nor of a delivery's, which spends no attempt."""
    assert api.place().status_code == 201
    api.shop.database.close()
    with closing(sqlite_module().connect(file)) as connection:
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'orders'").fetchall()
    with file.open("r+b") as opened:
        opened.seek((page - 1) * 4096)
        opened.write(b"\xff" * 4096)

    with listening(caplog):
        assert api.place(order_id="1002").status_code == 503
        assert api.get("/api/orders/1001").status_code == 503
        with pytest.raises(DatabaseUnavailable):
            api.shop.dispatch()
    cure = "orders.db is damaged: stop the service, and restore a backup with 'flask db restore'"
    assert caplog.messages == [f"answering 503: database disk image is malformed; {cure}"]
    assert {delivery.attempts for delivery in api.shop.deliveries()} == {0}


def test_two_databases_in_one_process_lose_only_their_own_file(tmp_path: Path, sqlite_template: Path) -> None:
    kept, lost = (tmp_path / name for name in ("kept.db", "lost.db"))
    databases = [Database(f"sqlite:///{shutil.copy(sqlite_template, file)}") for file in (kept, lost)]
    for database in databases:
        database.transact(lambda transaction: transaction.session.add(User(user_id="1")))
    lost.unlink()
    with pytest.raises(DatabaseUnavailable):
        databases[1].transact(lambda transaction: transaction.session.add(User(user_id="2")))
    databases[0].transact(lambda transaction: transaction.session.add(User(user_id="2")))
    for database in databases:
        database.close()
