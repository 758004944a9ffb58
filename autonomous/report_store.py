"""Reports of versions on disk: what a benchmark found, and the page. Beside the bundles, which never change.

FOLDER/VERSION/benchmark-SECONDS.json   one per run, the newest `KEPT` of a version
FOLDER/VERSION/report.html              the page, written anew when something of it changes
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from autonomous.benchmark_report import BenchmarkReport
from autonomous.report_page import render_version
from autonomous.triggers import Trigger
from autonomous.versions.report import EvaluationReport
from autonomous.versions.schema import VersionRecord
from memory.types import Guard
from train.files import sync_path

KEPT = 8
"""Benchmarks of one version."""
PAGE = "report.html"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FILE = re.compile(r"benchmark-(\d{12})\.json")


def write_version_report(
    folder: Path,
    record: VersionRecord,
    report: EvaluationReport | None,
    benchmark: BenchmarkReport | None,
    *,
    triggers: Sequence[Trigger] = (),
) -> Path:
    """Write the page of a version below `folder`; returns its path. Raises OSError."""
    page = _folder_of(folder, record.name) / PAGE
    _write(page, render_version(record, report, benchmark, triggers=triggers))
    return page


def save_benchmark(folder: Path, report: BenchmarkReport, *, guard: Guard) -> Path:
    """Keep a benchmark; the same one again changes nothing. `guard` is asked right before it appears.

    Raises OSError, and what the guard raises.
    """
    own = _folder_of(folder, report.version)
    path = own / f"benchmark-{round(report.created_at):012d}.json"
    _write(path, json.dumps(report.to_dict(), allow_nan=False), guard=guard)
    for old in _benchmarks(own)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def load_benchmark(folder: Path, version: str) -> BenchmarkReport | None:
    """The newest of a version, None without one. Raises ValueError for a file of another format."""
    paths = _benchmarks(_folder_of(folder, version))
    return _read(paths[-1]) if paths else None


def load_history(folder: Path, *, limit: int = 50) -> list[BenchmarkReport]:
    """The newest benchmarks of all versions, oldest first; those of another format are left out."""
    paths = sorted(
        (path for own in folder.glob("*") if own.is_dir() for path in _benchmarks(own)), key=lambda path: path.name
    )
    reports = []
    for path in paths[-limit:]:
        try:
            reports.append(_read(path))
        except ValueError:  # of an earlier program: it compares with nothing
            continue
    return reports


def _read(path: Path) -> BenchmarkReport:
    return BenchmarkReport.from_dict(json.loads(path.read_text("utf-8")))


def _benchmarks(own: Path) -> list[Path]:
    return sorted(path for path in own.glob("benchmark-*.json") if _FILE.fullmatch(path.name))


def _folder_of(folder: Path, version: str) -> Path:
    if not _NAME.fullmatch(version):
        raise ValueError(f"version is {version!r}: a report's folder is named by letters, digits, dots and dashes")
    return folder / version


def _write(path: Path, text: str, *, guard: Guard | None = None) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync_path(temporary)
        if guard is not None:
            guard()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_path(path.parent)
