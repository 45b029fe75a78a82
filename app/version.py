"""The service's version. The log's first line, /healthz, /openapi.json and flask --version show it."""

VERSION = "1.0.0"
"""Semantic versioning. CHANGELOG.md has a heading for it, and a release has the tag ``v`` and this."""
