"""The hash of the source that this process runs: it names the code in a version's bundle and in an actor's identity."""

import hashlib
from functools import cache
from pathlib import Path

CODE_PACKAGES = ("memory", "train", "autonomous", "actors")
"""The packages that learn, judge and remember."""


@cache
def code_sha256() -> str:
    """Computed once, at import, so that an edit later does not change it."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in CODE_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


code_sha256()
