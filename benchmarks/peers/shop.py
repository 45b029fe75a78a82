"""What the peers share: the two records, the route, the mail. Run as a program it makes the tables.

Settings come from the environment: DATABASE_URL, MAIL_PORT, BROKER_URL, and DURABLE for a peer whose defaults are not
yet as durable as it can be made. SQLite's ``synchronous`` stays at its own default, FULL.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from flask import Flask, render_template, request
from flask_mail import Mail, Message
from sqlalchemy import Numeric, String, create_engine, event, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

AT_ONCE = 4
"""How many receivers run at once on the machine. The service by itself sends two mails at once."""

DURABLE = bool(os.environ.get("DURABLE"))

TEMPLATES = Path(__file__).resolve().parents[2] / "app" / "mail" / "templates"


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    order_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(64), index=True)
    total_price: Mapped[Decimal] = mapped_column(Numeric(20, 2))
    status: Mapped[str] = mapped_column(String(16), default="created")
    notification: Mapped[str] = mapped_column(String(16), default="pending")
    created_at: Mapped[datetime]


class User(Base):
    __tablename__ = "users"

    user_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    orders_count: Mapped[int]
    total_spent: Mapped[Decimal] = mapped_column(Numeric(20, 2))


def _engine(url: str) -> Any:
    if not url.startswith("sqlite"):
        return create_engine(url)
    engine = create_engine(url, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "this SQLite's default is not FULL"

    return engine


engine = _engine(os.environ["DATABASE_URL"])
mail = Mail()


def make_app(
    publish: Callable[[dict[str, str]], object] = lambda _: None,
    publish_inside: Callable[[dict[str, str], Session], object] = lambda *_: None,
) -> Flask:
    """The shop. ``publish`` is called with each order once it is stored, ``publish_inside`` in its transaction."""
    app = Flask(__name__, template_folder=str(TEMPLATES))
    app.jinja_env.trim_blocks = True
    app.config.update(
        MAIL_SERVER="127.0.0.1", MAIL_PORT=int(os.environ["MAIL_PORT"]), MAIL_DEFAULT_SENDER="orders@localhost"
    )
    mail.init_app(app)

    @app.post("/api/create_order")
    def create_order() -> Any:
        given = request.get_json()
        order = Order(
            order_id=str(given["order_id"]),
            user_id=str(given["user_id"]),
            total_price=Decimal(str(given["total_price"])),
            created_at=datetime.now(UTC),
        )
        facts = {
            "order_id": order.order_id,
            "user_id": order.user_id,
            "total_price": f"{order.total_price:.2f}",
            "created_at": f"{order.created_at:%Y-%m-%d %H:%M:%S} UTC",
        }
        with Session(engine) as session, session.begin():
            session.add(order)
            publish_inside(facts, session)
        publish(facts)
        return {"status": "success", "message": "订单创建成功", "order_id": facts["order_id"]}, 201

    return app


def update_user_order_record(order: dict[str, str]) -> None:
    """The order becomes ``confirmed``, and the user's record takes it in."""
    insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
    price = Decimal(order["total_price"])
    with Session(engine) as session, session.begin():
        session.execute(update(Order).where(Order.order_id == order["order_id"]).values(status="confirmed"))
        session.execute(
            insert(User)
            .values(user_id=order["user_id"], orders_count=1, total_spent=price)
            .on_conflict_do_update(
                index_elements=["user_id"],
                set_={"orders_count": User.orders_count + 1, "total_spent": User.total_spent + price},
            )
        )


def send_email_notification(order: dict[str, str]) -> None:
    """The same mail as the service's, by plain Flask-Mail, and its outcome on the order. Needs an app context."""
    facts = order | {"language": "zh-CN"}
    subject, body = render_template("order_notification.zh.txt", **facts).split("\n\n", 1)
    html = render_template("order_notification.zh.html", **facts)
    mail.send(Message(subject, recipients=[f"{order['user_id']}@users.example"], body=body, html=html))
    with Session(engine) as session, session.begin():
        session.execute(update(Order).where(Order.order_id == order["order_id"]).values(notification="sent"))


if __name__ == "__main__":
    Base.metadata.create_all(engine)
