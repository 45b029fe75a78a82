"""Pictures of what was learned from a played day, as the console's page /retries draws them.

A day's transitions are stored in a database, a table is fitted to them as the service does it, and the page's own
templates draw. Colours are those of the page's light scheme, because a file has no other.
"""

import re
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from flask import Flask, render_template_string

from app import create_app
from app.bus import gates, learning
from app.bus.tables import RetryTransition
from app.console import languages, policy_pictures, why
from app.db import schema
from app.retry import Scope
from app.retry.shown import Shown
from benchmarks.retry.backends import play_day
from benchmarks.retry.gated import RECEIVER, LearnedBus, Memory
from benchmarks.retry.simulate import play
from config import CHECKOUT, Settings

STATIC = CHECKOUT / "app" / "console" / "static"
DRAW = '{% import "console/policy_pictures.html" as draw with context %}{{ draw.'


def draw(folder: Path) -> None:
    """Of one day of long outages, and of one of greylisting."""
    with tempfile.TemporaryDirectory() as instance:
        settings = Settings.of(instance_path=Path(instance), mail_backend="memory", log_level="ERROR")
        app = create_app(settings)
        schema.upgrade(app.extensions["database"])
        outages = _learned(app, "long outages", Scope.BACKEND, "unreachable")
        greylist = _learned(app, "greylisting", Scope.MESSAGE, "mailbox")
        with app.test_request_context(headers={"Accept-Language": "en"}):
            languages.prepare()
            for name, content in _pictures(app, outages, greylist).items():
                (folder / f"retry-{name}.svg").write_text(content)
        app.extensions["engine"].stop()
        app.extensions["database"].close()


def _learned(app: Flask, scenario: str, scope: Scope, kind: str) -> Shown:
    """Store a day's transitions, as if it ended now, and fit."""
    memory, database, bus = Memory(), app.extensions["database"], app.extensions["bus"]
    play(play_day(scenario, 1, training=True), lambda backend, loop: LearnedBus(backend, loop, memory, 1))
    rows = list(zip(*memory.seen[RECEIVER, scope, kind], strict=True))
    now, end = database.clock.now(), max(at for *_, at in rows)
    same = {"receiver": RECEIVER, "scope": str(scope), "kind": kind}

    def stored(age_from: float, age_to: float, gone: bool, at: float) -> RetryTransition:
        moment = now - timedelta(seconds=float(end - at))
        return RetryTransition(**same, age_from=float(age_from), age_to=float(age_to), gone=bool(gone), at=moment)

    database.transact(lambda transaction: transaction.session.add_all(stored(*row) for row in rows))
    assert bus.learning.fit("the pictures") is not None
    return Shown(bus.policy, scope, kind, RECEIVER)


def _pictures(app: Flask, outages: Shown, greylist: Shown) -> dict[str, str]:
    of_outages, of_greylist = _measured(app, outages), _measured(app, greylist)
    survival, bars = "P(still there)", "below it the attempts that came through and those that did not"

    def curve(shown: Shown, measured: list[Any], title: str) -> str:
        return _drawn(
            f"{title}: {survival}, {bars}", "curve(drawn, label, pictures)", policy_pictures.curve(shown, measured)
        )

    return {
        "heat-map": _drawn(
            "Wait until the next probe: age × deliveries that wait",
            "heat_map(drawn, true, label)",
            policy_pictures.heat_map(outages),
        ),
        "survival": curve(outages, of_outages, "Outages of a backend, one day"),
        "greylist": curve(greylist, of_greylist, "A greylist of 300 s, one day"),
        "chain": _drawn(
            "The chain: state, action, next state; one day of a greylist of 300 s",
            "chain(drawn, label, pictures)",
            policy_pictures.chain(of_greylist),
        ),
    }


def _measured(app: Flask, shown: Shown) -> list[Any]:
    since = gates.moment(0.0)
    with app.extensions["database"].read() as session:
        return learning.measured(session, shown.receiver, shown.scope, shown.kind, policy_pictures.AGES, since)


def _drawn(title: str, call: str, drawn: Any) -> str:
    """A file of its own: with its style, and on white."""
    given = {"drawn": drawn, "label": title, "pictures": policy_pictures, "why": why, "number": languages.shown_number}
    svg = render_template_string(f"{DRAW}{call} }}}}", **given)
    head, _, rest = svg.partition(">")
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{_style()}</style>{background}{rest}\n'


def _style() -> str:
    """The page's rules for its pictures, with the light scheme's colours in place of their names."""
    sheets = [(STATIC / name).read_text() for name in ("console.css", "retries.css")]
    named = re.findall(r"(--\w+): (?:light-dark\(([^,]+), [^)]+\)|([^;]+));", "".join(sheets))
    colours = {name: light or plain for name, light, plain in named}
    rules = re.findall(r"(?<![>\w] )svg\.policy [^{]+\{[^}]+\}", sheets[1])
    style = re.sub(r"var\((--\w+)\)", lambda found: colours[found[1]], " ".join(rules))
    return "text { font-family: system-ui, sans-serif; } " + style
