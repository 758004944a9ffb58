"""Files that must survive a power cut."""

import errno
import os
from pathlib import Path

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers of a write for which there is no room: the disk, a quota, a size limit."""


def sync_path(*paths: Path) -> None:
    """Force files, and the entries of folders, to disk (fsync), in this order. Raises OSError."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
