"""WHEN to try again: pure functions, no Flask, no database.

``fit.fit`` turns attempts into a ``Table`` and needs numpy, so only the process that fits imports it. All other modules
read the table with the standard library alone.
"""

from app.retry.causes import Cause, Scope, classify
from app.retry.costs import Costs
from app.retry.gate import Change, Failed, Gate, Noted, Phase
from app.retry.learned import LearnedPolicy, Obstacle
from app.retry.policy import PROBE_MAXIMUM, ExponentialBackoff, Policy, probe_wait
from app.retry.table import Table

__all__ = [
    "PROBE_MAXIMUM",
    "Cause",
    "Change",
    "Costs",
    "ExponentialBackoff",
    "Failed",
    "Gate",
    "LearnedPolicy",
    "Noted",
    "Obstacle",
    "Phase",
    "Policy",
    "Scope",
    "Table",
    "classify",
    "probe_wait",
]
