"""A container as strict platforms make it, in a mount namespace: see ``within``."""

import os
import shutil
import subprocess
from pathlib import Path

USER = 12345
"""Has no name."""

SCRIPT = f"""
for folder in "$@"; do
    shift
    [ "$folder" = -- ] && break
    mount --bind "$folder" "$folder"
done
umount --lazy --all-targets /dev/shm 2>/dev/null
mount --bind /dev /dev && mount -o remount,bind,ro /dev && mount -o remount,bind,ro / || exit 99
exec env -u HOME -u USER -u LOGNAME -u TMPDIR setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs "$@"
"""


def within(*writable: Path) -> list[str]:
    """The beginning of a command line: what follows runs with a read-only root, no writable /tmp, no /dev/shm, no HOME,
    and as a user without a name. Only the folders ``writable``, which become that user's, can be written to."""
    for folder in writable:
        folder.mkdir(exist_ok=True)
        os.chown(folder, USER, USER)
    namespace = ["unshare", "--mount", "--propagation", "private"]
    return [*namespace, "sh", "-c", SCRIPT, "sh", *map(str, writable), "--"]


def is_possible() -> bool:
    """For root, where namespaces may be made."""
    if os.getuid() or not all(map(shutil.which, ("unshare", "setpriv"))):
        return False
    return subprocess.run([*within(), "true"], capture_output=True).returncode == 0
