"""The system's signing key: what a file says was written by a process of this system, and by nobody without its key.

Ed25519 (RFC 8032) from `cryptography`. The private key lies in one file of mode 0600 (PKCS 8, PEM); `SIGNATURE` and `KEY` are
the two fields that a signed record has more than its content. Limit: whoever may read the key may sign.
"""

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from autonomous.versions.audit import canonical_json
from train.files import sync_path

SIGNATURE, KEY = "signature", "key"
PRIVATE_BITS = stat.S_IRWXG | stat.S_IRWXO


class BadSignature(ValueError):
    """A record that this system's key did not sign, or that was altered afterwards."""


class SigningKey:
    """One key pair. Thread-safe."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self._public: Ed25519PublicKey = private.public_key()
        self.public = self._public.public_bytes_raw().hex()
        """The public half, hex: what a signed record names, and what checks it elsewhere."""

    @classmethod
    def open(cls, path: Path) -> "SigningKey":
        """The key of this file; made, and on disk, if there is none.

        Raises ValueError for a file that others may read or that holds no such key; OSError.
        """
        with suppress(FileNotFoundError):
            return cls._read(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        private = Ed25519PrivateKey.generate()
        block = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(block)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another process made one at the same time: that one counts
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_path(path.parent)
        return cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> "SigningKey":
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & PRIVATE_BITS:
                raise ValueError(f"signing key {path} may be read by others: make it private (chmod 600 {path})")
            block = file.read()
        try:
            private = load_pem_private_key(block, password=None)
        except ValueError as error:
            raise ValueError(f"signing key {path} is damaged ({error}): restore it from a copy") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError(f"signing key {path} is no Ed25519 key: move it away, and a new one is made")
        return cls(private)

    def sign(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record with the key's name and a signature over all of it (canonical JSON)."""
        named = {**record, KEY: self.public}
        return {**named, SIGNATURE: self._private.sign(canonical_json(named).encode()).hex()}

    def check(self, signed: Mapping[str, Any]) -> dict[str, Any]:
        """The record of a signed one. Raises BadSignature."""
        named = {name: value for name, value in signed.items() if name != SIGNATURE}
        if named.get(KEY) != self.public:
            raise BadSignature(f"it was signed with another key ({str(named.get(KEY))[:16]}), not with this system's")
        try:
            self._public.verify(bytes.fromhex(str(signed.get(SIGNATURE))), canonical_json(named).encode())
        except (InvalidSignature, ValueError) as error:
            raise BadSignature("its signature does not fit its content") from error
        return {name: value for name, value in named.items() if name != KEY}
