"""The front page: the way of each event from its source through the bus to its receivers, with live numbers."""

import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

from flask import current_app, flash, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext, ngettext

from app.bus.queries import Step
from app.bus.status import ReceiverStatus, short
from app.clock import uuid7
from app.console import demo, diagram, languages
from app.console.diagram import Line, Node, Pipe
from app.console.figures import MOST_COUNTED, Figures, FiguresCache, Latency
from app.console.pages import Sign, go_to, live_part, page, read_form, seen, wrong_fields
from app.console.turns import Turns
from app.console.wiring import Receiver, Wiring, wiring
from app.current import bus, database
from app.errors import OrderConflict
from app.events import OrderCreated
from app.http import Problem
from app.orders import take_order
from app.request_models import NewOrder
from app.states import DeliveryState

SOURCE = "console"
"""The ``source`` of the events of orders that are placed here."""

TWENTY = 20
LONGEST_REASON = 120
"""Characters of a reason that the picture shows; its pages show the rest."""


def show_flow(given: Mapping[str, str] | None = None, wrong: dict[str, str] | None = None) -> str:
    found = _figures().now()  # whoever has just placed an order sees it, also without a script
    prefilled = {"order_id": f"w{secrets.randbelow(10**6):06}", "user_id": "42", "total_price": "19.99", "email": ""}
    return page(
        "flow.html",
        **_live(found),
        given=given or prefilled,
        wrong=wrong or {},
        can_break=demo.is_allowed(),
        can_kill=demo.is_allowed() and demo.replaceable(found.dispatchers) is not None,
        outage_seconds=demo.OUTAGE_SECONDS,
    )


def show_live() -> ResponseReturnValue:
    """The live part of the page, for its script; 304 while nothing has changed. Rendered once for all who look."""
    turns: Turns = current_app.extensions["console_turns"]
    found = _figures().latest(turns.longer_seconds() / 2)
    rendered = _rendered(found, (str(languages.choose_locale()), explains()))
    return live_part(rendered.tag, rendered.html)


@dataclass(frozen=True)
class Rendered:
    """The live part in one language, with or without explanations. ``tag`` is its ETag."""

    tag: str
    at: datetime
    """When its figures were."""
    html: bytes


class Rendering:
    """The latest of each kind, and the lock of the thread that renders."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.latest: dict[tuple[str, bool], Rendered] = {}


def _rendered(found: Figures, kind: tuple[str, bool]) -> Rendered:
    """Of these figures; of those before while another thread renders: else all who poll meanwhile would do it, too."""
    rendering: Rendering = current_app.extensions.setdefault("console_rendering", Rendering())
    tag = f"{found.version}-{'-'.join(map(str, kind))}"
    latest = rendering.latest.get(kind)
    if latest is not None and (latest.tag == tag or rendering.lock.locked()):
        return latest
    with rendering.lock:
        latest = rendering.latest.get(kind)
        if latest is None or latest.at < found.at:
            html = page("live.html", **_live(found)).encode()
            latest = rendering.latest[kind] = Rendered(tag, found.at, html)
    return latest


def _figures() -> FiguresCache:
    cache: FiguresCache = current_app.extensions.setdefault("console_figures", FiguresCache(bus()))
    return cache


def explains() -> bool:
    return request.args.get("explain") == "1"


# What is done here


def place_orders() -> ResponseReturnValue:
    """One order, or twenty that have its values; what is wrong is said beside its field."""
    count = TWENTY if request.form.get("count") == str(TWENTY) else 1
    try:
        placed = _place(read_form(NewOrder), count)
    except Problem as problem:
        return show_flow(request.form, wrong_fields(problem)), HTTPStatus.UNPROCESSABLE_ENTITY
    except OrderConflict:
        return show_flow(request.form, {"order_id": gettext("exists, with other content")}), HTTPStatus.CONFLICT
    if placed:
        flash(
            ngettext(
                "%(num)d order is stored. Watch it travel.", "%(num)d orders are stored. Watch them travel.", placed
            )
        )
    else:
        flash(gettext("This very order was stored before: nothing happens twice."))
    return _back()


def _place(order: NewOrder, count: int) -> int:
    """Returns how many were not there before. Raises OrderConflict."""
    placed = 0
    for number in range(1, count + 1):
        order_id = order.order_id if count == 1 else f"{order.order_id[:60]}-{number}"
        event = OrderCreated(**vars(order) | {"order_id": order_id})
        placed += take_order(database(), SOURCE, event, uuid7()) is None
    return placed


def break_mail() -> ResponseReturnValue:
    """Raises Problem with 403 where the console is more than a try-out."""
    _demand_demo()
    demo.break_mail()
    flash(
        gettext(
            "Mail is down for %(seconds)s s. Place orders: they are taken, and their mails wait.",
            seconds=demo.OUTAGE_SECONDS,
        )
    )
    return _back()


def kill_dispatcher() -> ResponseReturnValue:
    """Twenty orders, and the end of the dispatcher in the middle of them. Raises Problem with 403."""
    _demand_demo()
    pid = demo.replaceable(_figures().now().dispatchers)
    order = NewOrder(order_id=f"k{secrets.randbelow(10**6):06}", user_id="42", total_price="19.99")
    _place(order, TWENTY)
    try:
        if pid is None:
            raise ProcessLookupError
        demo.kill(pid)
        flash(
            gettext(
                "The dispatcher was killed in the middle of twenty orders. Another takes its place; nothing is lost."
            )
        )
    except ProcessLookupError:
        flash(gettext("There was no dispatcher to kill: one that gunicorn starts again was not there just now."))
    return _back()


def _demand_demo() -> None:
    if not demo.is_allowed():
        text = gettext("Nothing is broken on purpose where mail is sent, or the console is open to others.")
        raise Problem(HTTPStatus.FORBIDDEN, text)


def _back() -> ResponseReturnValue:
    return go_to("show_flow", explain="1" if request.form.get("explain") == "1" else None)


# The picture


def _live(found: Figures) -> dict[str, Any]:
    wires = wiring({(event.source, event.type) for event in found.events})
    picture = _Picture(found, wires, explains())
    return {
        "figures": found,
        "explain": explains(),
        "pictures": [
            ("wide", diagram.wide(picture.nodes, picture.pipes)),
            ("narrow", diagram.narrow(picture.nodes, picture.pipes)),
        ],
        "verdict": verdict(found),
        "rows": [(order, steps_of(found, found.steps.get(order.order_id, []))) for order in found.orders],
    }


def verdict(found: Figures) -> Sign:
    """How the service is, in a sentence."""
    statuses = found.receivers.values()
    if not found.dispatchers:
        return Sign("bad", "✕", gettext("No dispatcher is at work. Orders are taken and kept; nothing is delivered."))
    if held := [each for each in statuses if each.is_held_up]:
        names = ", ".join(seen(each.receiver) for each in held)
        waiting = sum(each.waiting for each in held)
        text = ngettext(
            "%(names)s is held up: %(num)d delivery waits. Orders are taken, and nothing is lost.",
            "%(names)s is held up: %(num)d deliveries wait. Orders are taken, and nothing is lost.",
            waiting,
            names=names,
        )
        return Sign("warn", "◼", text)
    if retrying := sum(each.retrying for each in statuses):
        return Sign(
            "warn",
            "↻",
            ngettext(
                "%(num)d delivery failed and is tried again.",
                "%(num)d deliveries failed and are tried again.",
                retrying,
            ),
        )
    if dead := sum(each.dead for each in statuses):
        return Sign(
            "bad",
            "✕",
            ngettext(
                "All is delivered but %(num)d, which was given up and waits for a person.",
                "All is delivered but %(num)d, which were given up and wait for a person.",
                dead,
            ),
        )
    if waiting := sum(each.waiting + each.in_flight for each in statuses):
        return Sign(
            "accent", "●", ngettext("%(num)d delivery is on its way.", "%(num)d deliveries are on their way.", waiting)
        )
    return Sign("ok", "✓", gettext("All is delivered. Nothing waits."))


class _Picture:
    def __init__(self, found: Figures, wires: Wiring, explain: bool) -> None:
        self.found, self.wires, self.explain = found, wires, explain
        self.nodes: list[Node] = []
        self.pipes: list[Pipe] = []
        self._sources()
        self._outbox()
        for receiver in wires.receivers:
            self._receiver(receiver)
        self._missing()
        self._unheard()

    def _say(self, text: str, file: str) -> list[Line]:
        return [Line("say", text), Line("code", file)] if self.explain else []

    def _sources(self) -> None:
        first, *others = self.wires.sources
        lines = [
            Line("role", gettext("source")),
            Line("name", "POST /api/create_order" if first == "OrderCreated" else first),
            self._events_row(first, gettext("%(event)s a minute", event=first)),
        ]
        lines += self._say(
            gettext(
                "Event source: stores the order and the event %(event)s in one transaction, then answers.", event=first
            ),
            "app/api/orders.py",
        )
        self.nodes.append(Node("source", 0, lines, url_for("console.show_orders")))
        self.pipes.append(self._pipe("source", "outbox", [first]))
        if others:
            lines = [Line("role", gettext("source")), Line("name", gettext("People: commands, this console"))]
            lines += map(self._events_row, others)
            lines += self._say(gettext("Whatever records an event in a transaction is a source."), "app/events.py")
            self.nodes.append(Node("people", 0, lines, url_for("console.show_events")))
            self.pipes.append(self._pipe("people", "outbox", others))

    def _pipe(self, start: str, end: str, types: list[str]) -> Pipe:
        passed = sorted(position for each in types for position in self.found.recorded(each))
        return Pipe(start, end, passed, "busy" if any(self.found.events_a_minute[each] for each in types) else "")

    def _outbox(self) -> None:
        statuses = self.found.receivers.values()
        oldest = min((each.oldest_waits_since for each in statuses if each.oldest_waits_since), default=None)
        lines = [
            Line("role", gettext("bus")),
            Line("name", gettext("Outbox and dispatcher")),
            _row(gettext("waiting"), sum(each.waiting for each in statuses), key="waiting"),
            _row(gettext("in flight"), sum(each.in_flight for each in statuses), key="in_flight"),
            _row(gettext("retrying"), sum(each.retrying for each in statuses), "warn", "retrying", MOST_COUNTED),
            _row(gettext("dead"), sum(each.dead for each in statuses), "bad", "dead", MOST_COUNTED),
        ]
        if oldest:
            lines.append(_age(gettext("oldest waits for"), oldest))
        if self.found.dispatchers:
            newest = max(self.found.dispatchers, key=lambda each: each.started_at)
            lines.append(_age(gettext("dispatcher, running for"), newest.started_at))
        else:
            lines.append(Line("state", gettext("no dispatcher is at work"), "✕", "bad"))
        lines += self._say(
            gettext(
                "Event bus: a row for each event and receiver. It leaves the queue only once its effect is stored."
            ),
            "app/bus/outbox.py",
        )
        tone = "" if self.found.dispatchers else "bad"
        self.nodes.append(Node("outbox", 1, lines, url_for("console.show_deliveries"), tone))

    def _receiver(self, receiver: Receiver) -> None:
        status = self.found.receivers.get(receiver.name)
        depth = self.wires.depth[receiver.name]
        if depth == 1:
            promise = gettext("exactly once") if receiver.transactional else gettext("at least once")
            lines = [
                Line("role", gettext("receiver · its effect %(promise)s", promise=promise)),
                Line("name", receiver.name),
            ]
        else:
            lines = [Line("role", gettext("published, and back through the bus to")), Line("name", receiver.name)]
            lines += map(self._events_row, receiver.takes)
        if status is not None:
            lines += self._state(status, depth)
        lines += self._say(
            gettext(
                "Event handler: one that fails delays no other, and is tried again until it succeeds or is given up."
            ),
            receiver.file,
        )
        held = status is not None and (status.breaker or status.pause)
        href = url_for("console.show_deliveries", receiver=receiver.name)
        self.nodes.append(Node(receiver.name, min(depth, 2) + 1, lines, href, "warn" if held else ""))
        delivered = self.found.delivered(receiver.name)
        tone = "held" if held else "busy" if self.found.done_a_minute[receiver.name] else ""
        if depth == 1:
            self.pipes.append(Pipe("outbox", receiver.name, delivered, tone))
        for other in self.wires.receivers:
            common = [each for each in other.publishes if each in receiver.takes]
            if common and other.name != receiver.name and self.wires.depth[other.name] < depth:
                self.pipes.append(self._pipe(other.name, receiver.name, common))

    def _events_row(self, event_type: str, word: str | None = None) -> Line:
        return _row(word or event_type, self.found.events_a_minute[event_type], key=f"events:{event_type}")

    def _state(self, status: ReceiverStatus, depth: int) -> list[Line]:
        """Its state as a word with a shape, and what is behind it."""
        lines: list[Line] = []
        if not status.is_connected:
            lines.append(Line("state", gettext("this process has no such receiver"), "✕", "bad"))
        elif pause := status.pause:
            lines.append(Line("state", gettext("paused by %(name)s", name=seen(pause.paused_by)), "‖", "warn"))
            lines.append(Line("note", seen(pause.reason)[:LONGEST_REASON]))
            lines.append(_age(gettext("for"), pause.paused_at))
        elif breaker := status.breaker:
            lines.append(Line("state", gettext("its circuit breaker is open"), "◼", "warn"))
            if breaker.reason:
                lines.append(Line("note", seen(short(breaker.reason))[:LONGEST_REASON]))
            lines.append(_age(gettext("open for"), breaker.opened_at))
            lines.append(Line("row", gettext("next probe in"), "0 s", until=breaker.next_probe_at))
        elif status.retrying:
            lines.append(Line("state", gettext("some failed, and are tried again"), "↻", "warn"))
        elif depth == 1:
            lines.append(Line("state", gettext("delivers"), "✓", "ok"))
        if depth == 1:
            ended = self.found.done_a_minute[status.receiver]
            lines.append(_row(gettext("done a minute"), ended, key=f"done:{status.receiver}"))
            if latency := self.found.latency(status.receiver):
                word = gettext("p50 / p99 after order")
                lines.append(Line("row", word, shown_latency(latency), key=f"latency:{status.receiver}"))
        rows = (
            _row(gettext("waiting"), status.waiting),
            _row(gettext("retrying"), status.retrying, "warn", most=MOST_COUNTED),
            _row(gettext("dead"), status.dead, "bad", most=MOST_COUNTED),
            _row(gettext("skipped of late"), status.skipped, most=MOST_COUNTED),
        )
        return lines + [each for each in rows if each.value != "0"]

    def _missing(self) -> None:
        """Receivers that have deliveries, and that no code here takes."""
        known = {receiver.name for receiver in self.wires.receivers}
        for name, status in self.found.receivers.items():
            if name not in known:
                lines = [
                    Line("role", gettext("receiver that is gone")),
                    Line("name", seen(name)),
                    *self._state(status, 1),
                ]
                self.nodes.append(Node(name, 2, lines, url_for("console.show_deliveries", receiver=name), "bad"))
                self.pipes.append(Pipe("outbox", name, [], "held"))

    def _unheard(self) -> None:
        """Published events that nobody takes: stored, for whoever subscribes one day."""
        taken = {each for receiver in self.wires.receivers for each in receiver.takes}
        for receiver in self.wires.receivers:
            if unheard := [each for each in receiver.publishes if each not in taken]:
                lines = [Line("role", gettext("published, and kept: nobody takes it")), *map(self._events_row, unheard)]
                self.nodes.append(Node(f"unheard:{receiver.name}", 3, lines, url_for("console.show_events")))
                self.pipes.append(self._pipe(receiver.name, f"unheard:{receiver.name}", unheard))


def _row(word: str, count: int, tone: str = "", key: str = "", most: int | None = None) -> Line:
    """A number; with a plus where ``most`` is where counting stops, and it may stand for more."""
    more = "+" if most is not None and count >= most else ""
    return Line("row", word, languages.shown_number(count) + more, tone, key=key)


def _age(word: str, since: datetime) -> Line:
    return Line("row", word, "0 s", since=since)


def shown_latency(latency: Latency) -> str:
    """``3 / 9 ms``, ``1.2 / 61.0 s``."""
    if latency.p99 < 1:
        return f"{latency.p50 * 1000:.0f} / {latency.p99 * 1000:.0f} ms"
    return f"{latency.p50:.1f} / {latency.p99:.1f} s"


# Where an order is


def steps_of(found: Figures, steps: list[Step]) -> list[Sign]:
    """Stored, then each receiver of what came from outside; of those behind them only what is not done."""
    shown = [Sign("ok", "✓", gettext("stored"))]
    sources = {step.event_type for step in steps[:1]} | {"OrderCreated", "NotificationRequested"}
    told = [step for step in steps if step.event_type in sources or step.state != DeliveryState.DONE]
    return shown + [_reached(step, found.receivers.get(step.receiver)) for step in told]


def _reached(step: Step, status: ReceiverStatus | None) -> Sign:
    name, reason = _short_name(step.receiver), seen(short(step.reason or ""))
    match step.state:
        case DeliveryState.DONE:
            return Sign("ok", "✓", name)
        case DeliveryState.DEAD:
            return Sign("bad", "✕", gettext("%(name)s given up", name=name), reason)
        case DeliveryState.DISCARDED:
            return Sign("dim", "–", gettext("%(name)s not needed", name=name), reason)
        case DeliveryState.LEASED:
            return Sign("accent", "●", gettext("%(name)s under way", name=name))
    if status is not None and (status.breaker or status.pause):
        return Sign("warn", "◼", gettext("%(name)s waits", name=name))
    if step.outcome:
        return Sign("warn", "↻", gettext("%(name)s is tried again", name=name), reason)
    return Sign("dim", "○", gettext("%(name)s waits", name=name))


def _short_name(receiver: str) -> str:
    known = {"update_user_order_record": gettext("record"), "send_email_notification": gettext("mail")}
    return str(known.get(receiver) or seen(receiver).replace("_", " "))
