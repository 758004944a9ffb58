"""Configuration of the tools: which are enabled, where code lies, how much a call may use, how programs are shut in."""

import os
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ToolName = Literal["calculator", "code_search", "documentation", "python"]
Isolation = Literal["interpreter", "kernel", "namespaces"]
"""How a program is shut in. interpreter: by an audit hook of Python, which a determined program gets around. kernel: the
kernel refuses files (Landlock), sockets, processes and all that is not listed (seccomp). namespaces: besides, it has a user,
a network and System V objects of its own."""
LEVELS: tuple[Isolation, ...] = get_args(Isolation)
"""Each is stronger than those before it."""


class SandboxConfig(BaseModel):
    """What a Python program may use. What of it the kernel enforces, and what is only looked at: docs/security.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_isolation: Isolation = "kernel"
    """Weaker than this no program is run."""
    cpu_s: int = Field(5, gt=0)
    """Processor time, whole seconds (RLIMIT_CPU counts no finer)."""
    wall_s: float = Field(10.0, gt=0)
    """Time in all, seconds."""
    memory_bytes: int = Field(512 << 20, ge=64 << 20)
    """Address space. Python itself needs some 30 MiB of it, a thread 8 MiB."""
    file_bytes: int = Field(8 << 20, ge=0)
    """Largest file."""
    folder_bytes: int = Field(32 << 20, ge=0)
    """All files of the working folder together, looked at 20 times a second."""
    num_files: int = Field(64, ge=0)
    """Files of the working folder, looked at likewise."""
    num_open_files: int = Field(32, ge=16)
    """File descriptors at a time. A file that was deleted while open counts here alone."""
    num_threads: int = Field(16, ge=1)
    """Threads, where the program has a user of its own (namespaces); elsewhere all processes of the user count, and memory
    is what bounds threads."""
    output_bytes: int = Field(64_000, gt=0)
    """Output and errors together; a program that writes more is ended."""
    source_chars: int = Field(100_000, gt=0)
    """Longest program."""


class CodeConfig(BaseModel):
    """Where code is searched, and how much of it is read for one question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    roots: tuple[Path, ...] = ()
    """Folders that are searched, and nothing outside of them: symbolic links are not followed, hidden files and folders are
    passed over. Without any, only stored passages are searched."""
    max_file_bytes: int = Field(1 << 20, gt=0)
    """Larger files are passed over."""
    num_files: int = Field(20_000, gt=0)
    """Most files read for one question."""
    num_results: int = Field(50, gt=0)
    """Most lines given."""
    seconds: float = Field(5.0, gt=0)
    """Time of one search: what a regular expression that backtracks without end may take."""
    num_passages: int = Field(20, gt=0)
    """Stored passages that are looked at."""

    @field_validator("roots")
    @classmethod
    def _absolute(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        found = tuple(Path(os.path.expandvars(root)).expanduser() for root in roots)
        if relative := [root for root in found if not root.is_absolute()]:
            raise ValueError(
                f"roots = '{relative[0]}' is relative, but the actors run in other folders; "
                "write an absolute path or one that starts with ~"
            )
        return found


class KnowledgeConfig(BaseModel):
    """Retrieval and tools (KnowledgeIntegration). A call asks for a permit and leaves two rows in the audit log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: tuple[ToolName, ...] = get_args(ToolName)
    """The tools that there are."""
    requested_by_model: tuple[ToolName, ...] = ("calculator", "code_search", "documentation")
    """The tools that a model may ask for while it answers. Programs that it wrote are not run unless "python" is added."""
    max_calls: int = Field(4, ge=1)
    """Tool calls for one question."""
    max_seconds: float = Field(30.0, gt=0)
    """Time of all tool calls for one question, seconds."""
    max_rounds: int = Field(3, ge=1)
    """How often the model is asked for one question; the last time it is offered no tool."""
    max_result_chars: int = Field(8000, ge=200)
    """A result is cut to this many characters."""
    max_prompt_chars: int = Field(3000, ge=200)
    """All results together in a prompt: 1,000 tokens or less of a context of 2,048."""
    num_passages: int = Field(3, ge=1)
    """Passages for a question for which no other tool fits."""
    min_cosine: float = Field(0.35, ge=-1, le=1)
    """Below this similarity a passage is left out, as in answers without tools (rag.min_cosine)."""
    code: CodeConfig = CodeConfig()
    sandbox: SandboxConfig = SandboxConfig()

    @model_validator(mode="after")
    def _requested_are_enabled(self) -> "KnowledgeConfig":
        if missing := [name for name in self.requested_by_model if name not in self.enabled]:
            raise ValueError(
                f"requested_by_model names '{missing[0]}', which is not in enabled; add it there or remove it here"
            )
        return self
