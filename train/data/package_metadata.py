"""What a package's own metadata declares as its licence.

In: name and content of a metadata file. Out: an SPDX expression, or None where it declares nothing that is known. Nothing is
executed: setup.py and *.gemspec are programs, and the second is only searched for a literal.
Sources: core metadata and PEP 639 (METADATA, PKG-INFO, pyproject.toml), Cargo manifest, npm and Composer package files, R's
DESCRIPTION.
"""

import configparser
import email
import json
import re
import tomllib
from collections.abc import Callable, Iterable
from typing import Any

from train.data.licence_text import licence_of_text
from train.data.spdx import PROPRIETARY, canonical, combine

_GEM_LICENCE = re.compile(r"\.licenses?\s{0,8}=\s{0,8}(\[[^\]]{0,400}\]|[\"'][^\"'\n]{1,200}[\"'])")
_QUOTED = re.compile(r"[\"']([^\"'\n]{1,200})[\"']")


def is_metadata(name: str) -> bool:
    """Whether a file of this name may declare a licence."""
    return name in _READERS or name.endswith(".gemspec")


def declared_licence(name: str, content: bytes) -> str | None:
    """The expression that the metadata file declares. Damaged metadata declares nothing."""
    reader = _READERS.get(name, _read_gemspec)
    try:
        return reader(content.decode("utf-8-sig", "replace"))
    except (ValueError, KeyError, RecursionError, configparser.Error):
        return None


def _read_core_metadata(text: str) -> str | None:
    message = email.message_from_string(text.partition("\n\n")[0] + "\n\n")
    expression = canonical(str(message.get("License-Expression", "")))
    return expression or _of_text(str(message.get("License", ""))) or _of_classifiers(message.get_all("Classifier", []))


def _read_pyproject(text: str) -> str | None:
    data = tomllib.loads(text)
    project = _table(data, "project")
    declared = project.get("license") or _table(_table(data, "tool"), "poetry").get("license")
    if isinstance(declared, dict):
        declared = declared.get("text")
    found = _of_text(declared) if isinstance(declared, str) else None
    return found or _of_classifiers(project.get("classifiers", []))


def _read_cargo(text: str) -> str | None:
    data = tomllib.loads(text)
    package = _table(data, "package") or _table(_table(data, "workspace"), "package")
    declared = package.get("license")
    return canonical(declared) if isinstance(declared, str) else None


def _read_setup_cfg(text: str) -> str | None:
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(text)
    declared = _of_text(parser.get("metadata", "license", fallback=""))
    return declared or _of_classifiers(parser.get("metadata", "classifiers", fallback="").splitlines())


def _read_package_json(text: str) -> str | None:
    """npm and Composer. A list is a choice; UNLICENSED is npm's word for: nobody may use this."""
    data = json.loads(text)
    if not isinstance(data, dict):
        return None
    declared = data.get("license", data.get("licenses"))
    names = [
        str(one.get("type", "")) if isinstance(one, dict) else str(one)
        for one in (declared if isinstance(declared, list) else [declared])
    ]
    if "UNLICENSED" in names:
        return PROPRIETARY
    known = [canonical(name) for name in names]
    return combine((name for name in known if name), operator="OR") if known and all(known) else None


def _read_description(text: str) -> str | None:
    """R: "MIT + file LICENSE", "GPL (>= 2)", alternatives after "|"."""
    declared = str(email.message_from_string(text).get("License", ""))
    parts = [re.sub(r"\+?\s*file LICEN[CS]E", "", part).strip() for part in declared.split("|")]
    parts = [re.sub(r"\s*\(>=\s*([\d.]+)\)", r" \1 or later", part) for part in parts if part]
    known = [canonical(part) for part in parts]
    return combine((name for name in known if name), operator="OR") if known and all(known) else None


def _read_gemspec(text: str) -> str | None:
    match = _GEM_LICENCE.search(text)
    names = [canonical(name) for name in _QUOTED.findall(match[1])] if match else []
    return combine((name for name in names if name), operator="OR") if names and all(names) else None


def _of_text(declared: str) -> str | None:
    """A name or an expression; some packages write the whole licence there."""
    return canonical(declared) or (licence_of_text(declared) if len(declared) > 40 else None)


def _of_classifiers(classifiers: Iterable[Any]) -> str | None:
    """All of them: classifiers cannot say whether they are a choice."""
    licences = [
        str(one).rpartition("::")[2].strip() for one in classifiers if str(one).strip().startswith("License ::")
    ]
    known = [canonical(name) for name in licences if name != "OSI Approved"]
    return combine((name for name in known if name), operator="AND") if known and all(known) else None


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


_READERS: dict[str, Callable[[str], str | None]] = {
    "METADATA": _read_core_metadata,
    "PKG-INFO": _read_core_metadata,
    "pyproject.toml": _read_pyproject,
    "Cargo.toml": _read_cargo,
    "setup.cfg": _read_setup_cfg,
    "package.json": _read_package_json,
    "composer.json": _read_package_json,
    "DESCRIPTION": _read_description,
}
