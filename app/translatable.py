"""Translatable text: an English sentence for logs and commands, of which a page can make one in another language."""

from typing import Any, Self


class Translatable(str):
    """``Translatable("%(name)s is paused", name="mail")`` is the text ``mail is paused``, and remembers its parts.

    ``make words`` collects the patterns. A value may be a Translatable itself.
    """

    __slots__ = ("pattern", "values")

    pattern: str
    values: dict[str, Any]

    def __new__(cls, pattern: str, **values: Any) -> Self:
        made = super().__new__(cls, pattern % values if values else pattern)
        made.pattern, made.values = pattern, values
        return made

    def __deepcopy__(self, memo: object) -> Self:
        """It never changes."""
        return self

    def then(self, more: str) -> "Translatable":
        """``this; more``."""
        return Translatable("%(this)s; %(more)s", this=self, more=more) if more else self
