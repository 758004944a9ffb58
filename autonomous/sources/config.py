"""Where the stream comes from: one configuration per source, told apart by its `kind`.

A person writes `[[agent.sources]]` in the configuration, or adds a source to the running system. What could lead a system
into a network or a secret that is not meant to be read is taken from the configuration file alone (TRUSTED_FIELDS).
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

Json = dict[str, Any]

TRUSTED_FIELDS = ("allow_private", "allow_remote", "token_env")
"""Only the configuration file may set them: whoever can reach the API must not widen what the system reaches."""

_REMOTE = re.compile(r"^(?!file://)([a-z][a-z0-9+.-]*://|[^/]+@[^/:]+:|[^/~.][^/]*:)", re.IGNORECASE)
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip")


MAX_PATH_CHARS = 4000


class _Source(BaseModel):
    """What every source has."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Its name: in the status, and as the source of its passages (trust, erasure, lineage). 1 to 64 letters, digits, . _ -"""
    interval_s: float = Field(60.0, ge=0.1, le=31 * 86_400.0, allow_inf_nan=False)
    """Seconds from the end of what there was to read until it is looked at again."""


class _Files(_Source):
    include: tuple[str, ...] = ()
    """Globs of what is read: * within a name, ** across folders; one without "/" matches a name in any folder. Empty: all."""
    exclude: tuple[str, ...] = ()
    """Globs of what is not read; they beat `include`."""
    when_removed: Literal["retire", "keep"] = "retire"
    """A file that is gone: its passages leave recall and learning, or stay."""

    @field_validator("include", "exclude")
    @classmethod
    def _relative_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
                raise ValueError(
                    f"the pattern {pattern!r} is empty or leads out of the source: give a glob relative to it, such as *.md"
                )
        return patterns


class FolderSource(_Files):
    """Every text file below a folder; of a folder with .git the tracked files, as they lie in the folder."""

    kind: Literal["folder"]
    path: Path
    """Absolute, or from ~."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return _absolute(path)


class GitSource(_Files):
    """The text files of a branch, as they are committed."""

    kind: Literal["git"]
    repository: str = Field(min_length=1, max_length=2000)
    """Path of a repository on this machine (bare ones too), or an address to clone from if `allow_remote`."""
    branch: str = Field("", max_length=250, pattern=r"^([A-Za-z0-9_][A-Za-z0-9._/+-]*)?$")
    """Branch, tag or commit. Empty: what HEAD points to."""
    allow_remote: bool = False
    """Clone and fetch over the network. Only in the configuration file."""

    @property
    def is_remote(self) -> bool:
        """Whether it is cloned from elsewhere."""
        return _REMOTE.match(self.repository) is not None

    @property
    def local_path(self) -> Path:
        """Where a local one lies."""
        return Path(self.repository.removeprefix("file://"))

    @field_validator("repository")
    @classmethod
    def _absolute(cls, repository: str) -> str:
        if _REMOTE.match(repository):
            parts = urlsplit(repository) if "://" in repository else None
            if parts is not None and (parts.password or (parts.username and parts.scheme in ("http", "https"))):
                raise ValueError("repository holds a name or password: leave it out and give git a credential helper")
            if parts is not None and parts.scheme not in ("https", "http", "ssh", "git"):
                raise ValueError(f"repository = {repository!r}: give a path, or an address of https or ssh")
            return repository
        return str(_absolute(Path(repository.removeprefix("file://"))))

    @model_validator(mode="after")
    def _remote_is_allowed(self) -> Self:
        if self.is_remote and not self.allow_remote:
            raise ValueError(
                f"repository = {self.repository!r} lies on another machine: clone it and give the path, or write "
                "allow_remote = true beside it in the configuration file"
            )
        return self


class _Records(_Source):
    text_field: str = Field("text", min_length=1, max_length=200)
    """The field with the text. Here and below a dot leads into a record: "page.body"."""
    id_field: str | None = Field(None, min_length=1, max_length=200)
    """A field that is unique in the source: a record with the same id takes the earlier one's place. None: each text is a
    document of its own."""
    title_field: str | None = Field(None, min_length=1, max_length=200)
    """The field with the title."""
    time_field: str | None = Field(None, min_length=1, max_length=200)
    """Seconds since the epoch, or ISO 8601. None: when the file was changed, or the answer came."""


class JsonlSource(_Records):
    """A file of JSON Lines that others append to, also one that is rotated."""

    kind: Literal["jsonl"]
    path: Path
    """Absolute, or from ~. It may come later; its folder must be there."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        if path.name.lower().endswith(_COMPRESSED):
            raise ValueError(f"path = '{path}' is compressed, and nobody appends to that: give the file that grows")
        return _absolute(path)


class HttpSource(_Records):
    """An address that answers with a JSON list, JSON Lines, or one page of text or HTML."""

    kind: Literal["http"]
    url: str = Field(min_length=8, max_length=4000)
    """http or https, without name and password."""
    format: Literal["auto", "json", "jsonl", "page"] = "auto"
    """What the answer is; auto: by its content type."""
    items_field: str = Field("", max_length=200)
    """JSON: where the list is, if the answer is an object. Empty: "items", "results" or "data"."""
    next_field: str = Field("next", max_length=200)
    """JSON: where the address of the next page is, or with `cursor_parameter` its cursor. `Link: rel="next"` counts too."""
    cursor_parameter: str = Field("", max_length=200)
    """Name of the query's parameter for the cursor that the last answer gave in `next_field`. It is kept over restarts."""
    max_response_bytes: int = Field(8 << 20, ge=1 << 10, le=1 << 30)
    """A longer answer is refused while it arrives."""
    timeout_s: float = Field(60.0, gt=0, le=600, allow_inf_nan=False)
    """Longest time of one answer, from the connection to its last byte."""
    allow_private: bool = False
    """Also read from addresses of this machine and of private networks. Only in the configuration file."""
    token_env: str = Field("", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """Environment variable with a bearer token, which the host of `url` alone sees. Only in the configuration file."""

    @field_validator("url")
    @classmethod
    def _is_web_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise ValueError(f"it is no address ({error}): give one such as https://example.org/feed.json") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is no web address: give one that begins with https:// or http://")
        if parts.username is not None or parts.password is not None:
            raise ValueError("it holds a name or password: leave them out and set token_env in the configuration file")
        return url


SourceConfig = Annotated[FolderSource | GitSource | HttpSource | JsonlSource, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)


def source_from_json(text: str) -> SourceConfig:
    """As `model_dump_json` wrote it. Raises pydantic's ValidationError."""
    return _ADAPTER.validate_json(text)


def place_of(config: SourceConfig) -> str:
    """What a cursor belongs to: another place is read from its start."""
    match config:
        case FolderSource() | JsonlSource():
            return f"{config.kind}:{config.path}"
        case GitSource():
            return f"git:{config.repository}"
        case HttpSource():
            return f"http:{config.url}"


def shown(config: SourceConfig) -> Json:
    """For the status: no value of an address's query, which may be a key."""
    fields = config.model_dump(mode="json", exclude_defaults=True)
    fields["kind"] = config.kind
    if isinstance(config, HttpSource):
        fields["url"] = shown_url(config.url)
    return fields


def shown_url(url: str) -> str:
    """An address as it may stand in a log: without name, password, fragment and the values of its query."""
    try:
        parts: SplitResult = urlsplit(url)
    except ValueError:
        return "a broken address"
    host = parts.netloc.rpartition("@")[2]
    query = "&".join(f"{pair.partition('=')[0]}=..." for pair in parts.query.split("&")) if parts.query else ""
    return f"{parts.scheme}://{host}{parts.path}{'?' if query else ''}{query}"


def refuse_trusted_fields(config: SourceConfig) -> None:
    """For a source that is added at run time. Raises ValueError."""
    for name in TRUSTED_FIELDS:
        if getattr(config, name, None):
            raise ValueError(
                f"{name} of source {config.id!r} can only be set in the configuration file: write the source there under "
                "[[agent.sources]] and start the system again"
            )


def _absolute(path: Path) -> Path:
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"'{path}' names a user that is not known: give an absolute path") from error
    if len(str(path)) > MAX_PATH_CHARS:
        raise ValueError(f"a path of {len(str(path))} characters is longer than any file system takes: correct it")
    if not path.is_absolute():
        raise ValueError(f"'{path}' is relative, but the system runs elsewhere: give an absolute path or one from ~")
    return path
