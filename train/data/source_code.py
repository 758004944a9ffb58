"""CodeDataProcessor: repositories and archives of source code as raw documents.

In: a folder, a git repository (its tracked files) or an archive. Out, file by file: RawDocument with path, language, licence
and repository in its metadata, or Rejected with the rule and the field of the configuration to change. Nothing of a repository
is executed, and nothing outside of it is read. Two passes: the first collects names, licence files and package metadata, for
what holds for a file may stand behind it; the second reads the files, one held at a time. Secrets are masked by DataCleaner.
Sources: The Stack (arXiv:2211.15533) and StarCoder2 (arXiv:2402.19173) for what is kept of a repository.
"""

import codecs
import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field, field_validator

from train.data.archive import ArchiveConfig, ArchiveMember, Problem, read_archive
from train.data.code_filters import KIND, CodeFilterConfig, Reason, content_reasons, describe_reasons, path_reasons
from train.data.code_language import LANGUAGES, OTHER, detect_language, is_never_code, language_of_name
from train.data.document import (
    BINARY_FIX,
    SKIPPED_FOLDERS,
    RawDocument,
    Rejected,
    describe_binary,
    describe_oversize,
    document_id,
    list_files,
    read_file,
)
from train.data.licence import MAX_EVIDENCE_BYTES, NONE, Licence, LicenceIndex, is_licence_evidence
from train.data.listing import raise_if_denied
from train.data.spdx import PERMISSIVE, UNKNOWN, is_allowed

_ARCHIVE_SUFFIX = re.compile(r"\.(?:tar(?:\.\w{2,3})?|tgz|tbz2|txz|zip|whl|crate|jar)$", re.IGNORECASE)
_SIZE_FIELD = "code.filters.max_bytes"


class CodeConfig(BaseModel):
    """What is kept of a repository."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    languages: tuple[str, ...] = tuple(LANGUAGES)
    """Names of code_language.LANGUAGES; files in other languages are rejected."""
    allowed_licences: tuple[str, ...] = tuple(PERMISSIVE.split())
    """SPDX identifiers. Of an expression, OR needs one allowed side and AND all; "GPL-2.0-only" also allows "or later"."""
    allow_unknown_licence: bool = False
    """Also keep files for which no licence was found: by law nobody may copy them."""
    filters: CodeFilterConfig = CodeFilterConfig()
    """Generated, vendored, minified and data-like files."""
    archive: ArchiveConfig = ArchiveConfig()
    """Limits of archives."""
    max_chars: int = Field(65_536, gt=0)
    """Of a packed repository document (pack_repository)."""

    @field_validator("languages")
    @classmethod
    def _check_languages(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(languages) - set(LANGUAGES))
        if unknown:
            raise ValueError(f"languages has {unknown[0]!r}: give names of {', '.join(LANGUAGES)}")
        return languages


@dataclasses.dataclass(frozen=True, slots=True)
class _Repository:
    """What the first pass found. `prefix` stands before a path in ids and in Rejected, `shown` in metadata."""

    name: str
    prefix: str
    shown: str
    source_id: str
    licences: LicenceIndex
    header_language: str

    def rejected(self, path: str, problem: Problem, *, lost_bytes: int = 0) -> Rejected:
        return Rejected(f"{self.prefix}{path}", *problem, lost_bytes=lost_bytes)


class CodeDataProcessor:
    """Reads one repository at a time; holds no state between them."""

    def __init__(self, config: CodeConfig) -> None:
        self._config = config
        self._allowed = frozenset(config.allowed_licences) | ({UNKNOWN} if config.allow_unknown_licence else set())

    def read(self, filesystem: pafs.FileSystem, path: str, *, source_id: str) -> Iterator[RawDocument | Rejected]:
        """Stream a repository folder or an archive: folders and zip files by path, tar files in their own order.

        Ids are made of source_id, `path` and the path within; of an absolute `path` only the last name, so that they do not
        depend on where it lies. Raises: ValueError at once if there is nothing at `path`; OSError if a disk fails.
        """
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise ValueError(f"{path} does not exist: give the path of a repository's folder or of an archive")
        if info.is_file:
            return self._read_archive(filesystem, path, source_id=source_id)
        root = _local_root(filesystem, path)
        if root is None:
            return self._read_remote(filesystem, path, source_id=source_id)
        return self._read_local(root, path, source_id=source_id)

    def _read_local(self, root: Path, path: str, *, source_id: str) -> Iterator[RawDocument | Rejected]:
        paths = list_files(root, on_error=raise_if_denied)
        licences = LicenceIndex()
        for relative in filter(is_licence_evidence, paths):
            item = read_file(root, relative, source_id=source_id, max_file_bytes=MAX_EVIDENCE_BYTES)
            if isinstance(item, RawDocument):
                licences.add(relative, _content(item))
        repository = _repository(path, paths, name=root.name, source_id=source_id, licences=licences)
        limit = self._config.filters.max_bytes
        for relative in paths:
            problem = self._refuse_path(relative)
            if problem is not None:
                yield repository.rejected(relative, problem)
                continue
            item = read_file(root, relative, source_id=source_id, max_file_bytes=limit, field_name=_SIZE_FIELD)
            if isinstance(item, RawDocument):
                yield self._judge(repository, item.title, _content(item), modified_at=item.happened_at)
            elif item is not None:
                yield dataclasses.replace(item, path=f"{repository.prefix}{item.path}")

    def _read_remote(
        self, filesystem: pafs.FileSystem, path: str, *, source_id: str
    ) -> Iterator[RawDocument | Rejected]:
        """A folder of an object store, which has neither links nor git."""
        root = f"{path.rstrip('/')}/" if path else ""
        found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
        infos = {info.path.removeprefix(root): info for info in found if info.is_file}
        paths = sorted(name for name in infos if SKIPPED_FOLDERS.isdisjoint(name.split("/")[:-1]))
        licences = LicenceIndex()
        for relative in filter(is_licence_evidence, paths):
            licences.add(relative, _load(filesystem, root + relative, max_bytes=MAX_EVIDENCE_BYTES))
        repository = _repository(path, paths, source_id=source_id, licences=licences)
        for relative in paths:
            size_bytes = infos[relative].size or 0
            problem = self._refuse_path(relative) or self._refuse_size(size_bytes)
            if problem is not None:
                yield repository.rejected(relative, problem, lost_bytes=size_bytes)
                continue
            content = _load(filesystem, root + relative, max_bytes=self._config.filters.max_bytes)
            modified_at = (infos[relative].mtime_ns or 0) / 1e9
            yield self._judge(repository, relative, content, modified_at=modified_at)

    def _read_archive(
        self, filesystem: pafs.FileSystem, path: str, *, source_id: str
    ) -> Iterator[RawDocument | Rejected]:
        licences = LicenceIndex()
        suffixes: dict[str, str] = {}

        def refuse_but_evidence(inner: str) -> Problem | None:
            suffixes.setdefault(PurePosixPath(inner).suffix, inner)
            return None if is_licence_evidence(inner) else ("is not needed", "")

        for item in read_archive(filesystem, path, config=self._config.archive, refuse=refuse_but_evidence):
            if isinstance(item, ArchiveMember):
                licences.add(item.path, item.content)
        repository = _repository(path, suffixes.values(), mark="!", source_id=source_id, licences=licences)
        folder = repository.prefix.removesuffix(repository.shown)
        for item in read_archive(filesystem, path, config=self._config.archive, refuse=self._refuse_path):
            if isinstance(item, Rejected):
                yield dataclasses.replace(item, path=f"{folder}{item.path}")
            else:
                yield self._judge(repository, item.path, item.content, modified_at=item.modified_at)

    def _judge(
        self, repository: _Repository, path: str, content: bytes, *, modified_at: float
    ) -> RawDocument | Rejected:
        language = detect_language(path, content, header_language=repository.header_language)
        problem = self._refuse_size(len(content)) or _refuse_content(content) or self._refuse_language(language)
        if problem is not None:
            return repository.rejected(path, problem, lost_bytes=len(content))
        licence = repository.licences.of(path, content)
        problem = self._refuse_licence(licence) or self._refuse_text(content)
        if problem is not None:
            return repository.rejected(path, problem, lost_bytes=len(content))
        return RawDocument(
            id=document_id(repository.source_id, relative_path=f"{repository.prefix}{path}"),
            source_id=repository.source_id,
            title=f"{repository.shown}{path}",
            content=content,
            media_type=f"text/x-{language}",
            happened_at=modified_at,
            metadata={
                "path": f"{repository.shown}{path}",
                "kind": KIND,
                "language": language,
                "licence": licence.expression,
                "licence_source": licence.source,
                "repository": repository.name,
            },
        )

    def _refuse_path(self, path: str) -> Problem | None:
        """What the path alone says against a file, so that it need not be read."""
        reasons = path_reasons(path, config=self._config.filters)
        if reasons:
            return _describe_filter(reasons)
        return self._refuse_language(OTHER if is_never_code(path) else language_of_name(path))

    def _refuse_language(self, language: str | None) -> Problem | None:
        if language is None or language in self._config.languages:
            return None
        if language in LANGUAGES:
            return f"language: {language} is not in code.languages", "add it there"
        return "language: other", "nothing to do: it is in none of the 18 languages"

    def _refuse_size(self, size_bytes: int) -> Problem | None:
        limit = self._config.filters.max_bytes
        return describe_oversize(size_bytes, max_bytes=limit, field_name=_SIZE_FIELD) if size_bytes > limit else None

    def _refuse_licence(self, licence: Licence) -> Problem | None:
        if is_allowed(licence.expression, allowed=self._allowed):
            return None
        if licence.expression != UNKNOWN:
            reason = f"licence: {licence.expression} ({licence.source}) is not allowed"
            return reason, "add it to code.allowed_licences if you may use it"
        where = "none was found" if licence == NONE else f"the text of {licence.source} is not known"
        return f"licence: unknown, {where}", "set code.allow_unknown_licence = true if you may use it"

    def _refuse_text(self, content: bytes) -> Problem | None:
        encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
        reasons = content_reasons(content.decode(encoding, "replace"), config=self._config.filters)
        return _describe_filter(reasons) if reasons else None


def _repository(
    path: str, paths: Iterable[str], *, name: str = "", mark: str = "/", source_id: str, licences: LicenceIndex
) -> _Repository:
    """`mark` stands between the repository's path and a path within; an archive is part of what is shown."""
    base = path.rstrip("/")
    last = base.rpartition("/")[2]
    base = last if base.startswith("/") else base
    suffixes = {PurePosixPath(one).suffix for one in paths}
    is_cpp = ".c" not in suffixes and not suffixes.isdisjoint(LANGUAGES["c++"].suffixes.split())
    return _Repository(
        name=name or _ARCHIVE_SUFFIX.sub("", last) or source_id,
        prefix=f"{base}{mark}" if base else "",
        shown=f"{last}{mark}" if mark == "!" else "",
        source_id=source_id,
        licences=licences,
        header_language="c++" if is_cpp else "c",
    )


def _local_root(filesystem: pafs.FileSystem, path: str) -> Path | None:
    """The real folder on this machine, or None for a folder elsewhere. Only document.py's reader is safe against links."""
    if isinstance(filesystem, pafs.SubTreeFileSystem):
        return _local_root(filesystem.base_fs, f"{filesystem.base_path.rstrip('/')}/{path}")
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(path).resolve()
    handler = getattr(filesystem, "handler", None)
    is_local = isinstance(handler, pafs.FSSpecHandler) and "file" in handler.fs.protocol
    return Path(path).resolve() if is_local else None


def _load(filesystem: pafs.FileSystem, path: str, *, max_bytes: int) -> bytes:
    with filesystem.open_input_stream(path) as file:
        return bytes(file.read(max_bytes + 1))


def _content(document: RawDocument) -> bytes:
    assert isinstance(document.content, bytes)
    return document.content


def _refuse_content(content: bytes) -> Problem | None:
    if not content.strip():
        return "is empty", "nothing to do, or write its text"
    binary = describe_binary(content)
    return None if binary is None else (binary, BINARY_FIX)


def _describe_filter(reasons: list[Reason]) -> Problem:
    return describe_reasons(reasons), "nothing to do, or change the limits of code.filters"
