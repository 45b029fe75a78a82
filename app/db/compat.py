"""A name of before, for a caller that is not converted yet. Goes with it."""

from app.db.sqlite import driver_module, is_safe


def sqlite_is_safe() -> bool:
    return is_safe(driver_module().sqlite_version_info)
