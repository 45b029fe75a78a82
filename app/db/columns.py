"""Column types and the base of all models: amounts and times read well in a plain ``select *``."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import MetaData, Numeric, Table
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

from app.db.postgresql import UtcTimestamp
from app.db.sqlite import MoneyText, TimeText


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "ck": "%(table_name)s_%(constraint_name)s_check",
        }
    )


class Money(TypeDecorator[Decimal]):
    """An exact amount with two decimals."""

    impl = Numeric(20, 2).with_variant(MoneyText(), "sqlite")
    cache_ok = True


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC."""

    impl = UtcTimestamp().with_variant(TimeText(), "sqlite")
    cache_ok = True


def table(model: type[Base]) -> Table:
    """The table of a model, for statements that run without the ORM's help."""
    assert isinstance(model.__table__, Table)  # noqa: S101 - for the type checker: it could be a join
    return model.__table__
