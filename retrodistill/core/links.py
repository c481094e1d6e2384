"""Symbolic links on the way to a file that is written: in a shared folder, those of other users are not followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from retrodistill.core.errors import UserError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def refuse_links_of_others(path: Path) -> None:
    """Refuse a path through a link of another user in a folder that others may write to, such as a shared cache.

    Whoever can put a link there could have any file of this user replaced. The user's own links, those of the
    administrator, and those in folders that only their owner writes to are followed: an output folder, or a part of the
    cache, may be a link to a larger disk. Linux itself protects only folders with the sticky bit, as /tmp.
    """
    if os.name != "posix":
        return
    absolute = Path(os.path.abspath(path))
    for place in (absolute, *absolute.parents):
        try:
            link = place.lstat()
            if not stat.S_ISLNK(link.st_mode) or link.st_uid in (os.geteuid(), 0):
                continue
            is_shared = place.parent.stat().st_mode & _OTHERS_WRITE
        except OSError:  # it is not there, or is not ours to look at
            continue
        if is_shared:
            raise UserError(
                f"{place} is a symbolic link of another user, to {os.readlink(place)}, in a folder that others may "
                "write to; nothing is written through it: remove it, or choose another folder."
            )
