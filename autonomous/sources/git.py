"""What of git a source needs: the commit of a branch, its files and their contents, by the program git.

A repository on this machine is read where it lies, nothing in it is changed and no program that it names is run; one
from elsewhere is mirrored into a folder of ours. Contents come from commits, not from a working tree.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autonomous.sources.batch import SourceProblem
from autonomous.sources.config import GitSource

READ_TIMEOUT_S = 60.0
FETCH_TIMEOUT_S = 600.0
"""A fetch that is cut off goes on with the next one."""
_FILE_MODES = (b"100644", b"100755")
"""What is a file: not a link, not a submodule."""


@dataclass(frozen=True, slots=True)
class Commit:
    """`at` in seconds since the epoch."""

    sha: str
    at: float


@dataclass(frozen=True, slots=True)
class GitFile:
    """A file of a commit: the hash of its content, and its size."""

    blob: str
    size_bytes: int


SAFE_SETTINGS = (
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "log.showSignature=false",
    "gpg.program=/bin/false",
    "gpg.ssh.program=/bin/false",
    "gpg.x509.program=/bin/false",
)
"""They win over the repository's own, which could name programs."""


class GitRepository:
    """See the module. `clones` holds the mirrors."""

    def __init__(self, config: GitSource, *, clones: Path) -> None:
        self._config = config
        self._path = clones / f"{config.id}.git" if config.is_remote else config.local_path

    def update(self) -> Commit:
        """Fetch what is elsewhere; the newest commit of the branch. Raises SourceProblem."""
        if self._config.is_remote:
            self._mirror()
        elif not self._path.is_dir():
            raise SourceProblem(
                f"repository = '{self._path}' of source {self._config.id!r} is no folder: give the path of a git repository"
            )
        name = self._config.branch or "HEAD"
        shown = self._git("show", "--no-show-signature", "--no-patch", "--format=%H %ct", f"{name}^{{commit}}", "--")
        sha, _, at = shown.decode().strip().rpartition("\n")[2].partition(" ")
        return Commit(sha, float(at))

    def files(self, commit: Commit) -> dict[str, GitFile]:
        """Of the whole commit, by path; links and submodules are left out."""
        listed = self._git("ls-tree", "-r", "-z", "-l", "--full-tree", commit.sha)
        files = {}
        for line in listed.split(b"\x00"):
            facts, _, name = line.partition(b"\t")
            fields = facts.split()
            if len(fields) == 4 and fields[0] in _FILE_MODES:
                if not fields[3].isdigit():  # "BAD"
                    raise self._lacks(fields[2].decode())
                files[os.fsdecode(name)] = GitFile(fields[2].decode(), int(fields[3]))
        return files

    def contents(self, blobs: Sequence[str]) -> dict[str, bytes]:
        """By hash. All are held at once: the caller bounds their sizes."""
        if not blobs:
            return {}
        out = self._git("cat-file", "--batch", given="\n".join(blobs).encode() + b"\n")
        try:
            return dict(_parse_batch(out))
        except KeyError as error:
            raise self._lacks(error.args[0]) from error

    def _lacks(self, what: str) -> SourceProblem:
        return SourceProblem(
            f"the repository of source {self._config.id!r} lacks objects ({what}): it is a partial clone, or damaged; git "
            "fsck tells, git fetch --refetch --no-filter mends it"
        )

    def _mirror(self) -> None:
        """Clone, or fetch. A clone that was cut off is begun anew."""
        if not (self._path / "HEAD").exists():
            partial = self._path.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(parents=True, exist_ok=True)
            self._run("clone", "--bare", "--quiet", "--", self._config.repository, str(partial))
            partial.rename(self._path)
            return
        self._run(
            "-C", str(self._path), "fetch", "--quiet", "--prune", "--force", "--", self._config.repository,
            "+refs/heads/*:refs/heads/*",
        )  # fmt: skip

    def _git(self, *arguments: str, given: bytes | None = None) -> bytes:
        return self._run("-C", str(self._path), *arguments, given=given, timeout_s=READ_TIMEOUT_S)

    def _run(self, *arguments: str, given: bytes | None = None, timeout_s: float = FETCH_TIMEOUT_S) -> bytes:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        environment |= {
            "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "https:http:ssh:git",
            "GIT_SSH_COMMAND": "ssh -o BatchMode=yes", "LC_ALL": "C", "GIT_CEILING_DIRECTORIES": str(self._path.parent),
        }  # fmt: skip
        command = ["git", *(part for setting in SAFE_SETTINGS for part in ("-c", setting)), *arguments]
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, check=True, timeout=timeout_s, env=environment
            )
        except FileNotFoundError as error:
            raise SourceProblem(f"source {self._config.id!r} needs the program git: install it") from error
        except subprocess.TimeoutExpired as error:
            raise SourceProblem(
                f"git of source {self._config.id!r} did not answer within {timeout_s:.0f} s: see whether the repository "
                "and the network are well; it is tried again"
            ) from error
        except subprocess.CalledProcessError as error:
            said = " ".join(error.stderr.decode("utf-8", "replace").split())[:500]
            if "promisor" in said:
                raise self._lacks(said) from error
            raise SourceProblem(
                f"git cannot read source {self._config.id!r} (branch {self._config.branch or 'HEAD'}): {said}: correct "
                "repository or branch"
            ) from error
        return done.stdout


def _parse_batch(out: bytes) -> Iterator[tuple[str, bytes]]:
    """The answer of `git cat-file --batch`: a line with hash, type and size, the content, a line end; and so on.

    Raises KeyError with the hash of an object that is not there.
    """
    position = 0
    while position < len(out):
        end = out.index(b"\n", position)
        blob, *found = out[position:end].split()
        if found == [b"missing"]:
            raise KeyError(blob.decode())
        _, size = found
        begin = end + 1
        position = begin + int(size) + 1
        yield blob.decode(), out[begin : position - 1]
