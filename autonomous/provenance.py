"""By what an evaluation was made: hashes of its code and of its texts. Taken once per process."""

import hashlib
from functools import cache

from autonomous.judging_code import ROOT, judging_files
from autonomous.sentinel import SENTINELS, load_sentinel
from autonomous.suite import EVALUATION_SUITES, SUITES, asked_texts, load_suite


@cache
def evaluation_code_sha256() -> str:
    """Hash of the code that judges, by name: computed at import, so that an edit later does not change it."""
    digest = hashlib.sha256()
    for path in judging_files():
        digest.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


evaluation_code_sha256()


@cache
def suites_sha256() -> str:
    """Hash of all suite and sentinel files."""
    hashes = [load_suite(name).sha256 for name in SUITES] + [load_sentinel(name).sha256 for name in SENTINELS]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


@cache
def evaluation_texts() -> dict[str, str]:
    """Every text and prompt that nothing may be trained on, by the id of its row."""
    suites = [load_suite(name) for name in EVALUATION_SUITES] + [load_sentinel(name) for name in SENTINELS]
    return {key: text for suite in suites for key, text in asked_texts(suite).items()}
