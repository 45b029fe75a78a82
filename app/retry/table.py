"""The table that a fit yields and a decision reads: small, versioned, kept as JSON. Standard library only."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from typing import Any

from app.retry.ages import BUCKETS, EDGES, LEVELS, bucket_of
from app.retry.causes import Scope
from app.retry.costs import Costs

FORMAT = 2
"""Of the JSON. A table in another format is fitted again, not read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of obstacles of one receiver, scope and kind, and what to do about them."""

    hazard: tuple[float, ...]
    """Of each bucket: its integral over the bucket."""
    deviation: tuple[float, ...]
    """Standard deviation of the cumulated hazard at each edge; the survival's band is exp(-(ΣH ± 2 of them))."""
    plan: tuple[tuple[int, ...], ...]
    """For each level of waiting deliveries and each bucket, as ``solve.Solution.plan``."""
    prior_wait: tuple[float, ...] = ()
    """For each bucket and one waiting delivery, what the prior alone would wait, in seconds; infinite: give up."""
    fitted_at: float = 0.0
    """Seconds since 1970."""
    transitions: int = 0
    """Attempts that it was estimated from."""
    ends: int = 0
    """Obstacles among them whose end was seen."""
    forget_before: float = 0.0
    """Seconds since 1970: what is older was refuted, and is not used."""
    forgotten_at: float = 0.0
    drift: float = 0.0
    """CUSUM of log(p by the prior / p by this table) of what happened since: see guard.py."""
    drift_since: float = 0.0
    expected: float = 0.0
    """Calibration: successes that the tables before predicted, fading; beside ``seen``, those that came."""
    seen: float = 0.0
    judged: float = 0.0
    """Attempts that were predicted, fading."""
    cumulated: tuple[float, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cumulated", tuple(accumulate(self.hazard, initial=0.0)))

    def gone_by(self, start: int, end: int) -> float:
        """The probability that an obstacle that is there at the one edge is gone at the other; by their indices."""
        return -math.expm1(self.cumulated[start] - self.cumulated[end])

    def gone_between(self, age: float, later: float) -> float:
        """The probability that an obstacle that is there at ``age`` is gone at ``later``; both in seconds."""
        return -math.expm1(self.cumulated_at(age) - self.cumulated_at(later))

    def cumulated_at(self, age: float) -> float:
        """Linear within a bucket, where the hazard is constant."""
        bucket = bucket_of(age)
        if bucket == BUCKETS:
            return self.cumulated[-1]
        share = max(0.0, age - EDGES[bucket]) / (EDGES[bucket + 1] - EDGES[bucket])
        return self.cumulated[bucket] + share * self.hazard[bucket]


def entry_key(receiver: str, scope: Scope | str, kind: str) -> str:
    return f"{scope}/{kind}/{receiver}"


@dataclass(frozen=True, slots=True)
class Table:
    """``entries`` by ``entry_key``; the prior's have the receiver "" and serve every receiver without its own."""

    version: int
    fitted_at: float
    """Seconds since 1970."""
    costs: Costs
    entries: Mapping[str, Entry]
    lone: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    """For each receiver and kind: (failures while the backend was up, answers in all), fading."""

    def find(self, receiver: str, scope: Scope | str, kind: str) -> Entry | None:
        found = self.entries.get(entry_key(receiver, scope, kind))
        return found or self.entries.get(entry_key("", scope, kind))

    def to_json(self) -> str:
        """Numbers with four digits: some ten kilobytes for each entry."""
        return json.dumps(
            {
                "format": FORMAT,
                "levels": len(LEVELS),
                "buckets": BUCKETS,
                "version": self.version,
                "fitted_at": self.fitted_at,
                "costs": asdict(self.costs),
                "lone": {receiver: dict(kinds) for receiver, kinds in self.lone.items()},
                "entries": {key: _entry_json(entry) for key, entry in self.entries.items()},
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> "Table | None":
        """None where it was written in another format or for other buckets."""
        told = json.loads(text)
        if (told.get("format"), told.get("levels"), told.get("buckets")) != (FORMAT, len(LEVELS), BUCKETS):
            return None
        return cls(
            version=told["version"],
            fitted_at=told["fitted_at"],
            costs=Costs(**told["costs"]),
            entries={key: _entry_from(entry) for key, entry in told["entries"].items()},
            lone={name: {kind: (n, of) for kind, (n, of) in kinds.items()} for name, kinds in told["lone"].items()},
        )


def _entry_json(entry: Entry) -> dict[str, Any]:
    told = {each.name: getattr(entry, each.name) for each in fields(entry) if each.init}
    for name in ("hazard", "deviation"):
        told[name] = [float(f"{number:.4g}") for number in told[name]]
    told["prior_wait"] = [None if math.isinf(number) else float(f"{number:.4g}") for number in told["prior_wait"]]
    return told


def _entry_from(told: dict[str, Any]) -> Entry:
    return Entry(
        **{
            **told,
            "hazard": tuple(told["hazard"]),
            "deviation": tuple(told["deviation"]),
            "plan": tuple(tuple(row) for row in told["plan"]),
            "prior_wait": tuple(math.inf if number is None else number for number in told["prior_wait"]),
        }
    )
