"""Files that must survive a power cut."""

import os
from pathlib import Path


def sync_path(*paths: Path) -> None:
    """Force files, and the entries of folders, to disk (fsync), in this order. Raises OSError."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
