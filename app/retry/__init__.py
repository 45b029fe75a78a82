"""WHEN to try again: pure functions, no Flask, no database."""

from app.retry.policy import ExponentialBackoff, Policy, probe_wait

__all__ = ["ExponentialBackoff", "Policy", "probe_wait"]
