"""Errors that are raised without words of their own."""

import pytest

from app.errors import AppError, Refused


def subclasses(kind: type[AppError]) -> list[type[AppError]]:
    return [kind, *(found for each in kind.__subclasses__() for found in subclasses(each))]


@pytest.mark.parametrize("kind", subclasses(AppError))
def test_an_errors_default_words_are_one_line(kind: type[AppError]) -> None:
    message = str(kind())
    assert message.isprintable()
    assert "  " not in message
    assert len(message) > 20


def test_an_error_of_ones_own_has_its_kinds_words() -> None:
    class TooOld(Refused):
        pass

    assert str(TooOld()) == str(Refused())
