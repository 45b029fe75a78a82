"""WHEN to try again: pure functions, no Flask, no database."""

from app.retry.policy import PROBE_MAXIMUM, ExponentialBackoff, Policy, probe_wait

__all__ = ["PROBE_MAXIMUM", "ExponentialBackoff", "Policy", "probe_wait"]
