"""Small inputs of every kind for runs of the token pipeline, made of what every installation has."""

import gzip
import io
import json
import random
import shutil
import sysconfig
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from train.data.config import PipelineConfig, load_pipeline_config

CONFIG = """
output = "out"
[[sources]]
name = "crawl"
kind = "web"
location = "crawl/*.warc.gz"
unit_bytes = 60000
[[sources]]
name = "manual"
kind = "text"
location = "manual"
[[sources]]
name = "records"
kind = "jsonl"
location = "records.jsonl"
unit_bytes = 100000
[[sources]]
name = "code"
kind = "code"
location = "code"
repositories = "location"
[code]
allow_unknown_licence = true
[quality.gopher_quality]
min_words = 30
min_letter_words = 0.5
[quality.c4]
enabled = false
[quality.fineweb]
enabled = false
[[evaluation_sets]]
name = "exam"
path = "exam.jsonl"
[tokenizer.train]
vocab_size = 1000
[packing]
sequence_length = 128
sequences_per_shard = 200
"""
EMAIL = "someone.real@mail.example.org"
EXAM = "Which statement of the language binds names to the attributes of a module that was imported before it runs"


def write_inputs(folder: Path) -> Path:
    """Topics of the Python reference as text, pages and records, copies of some, a package's source; the configuration."""
    from pydoc_data.topics import topics

    generator = random.Random(0)
    names = sorted(topics, key=lambda name: (-len(topics[name]), name))[:60]
    texts = [topics[name] for name in names]
    (folder / "manual").mkdir(parents=True)
    for name, text in zip(names[:20], texts[:20], strict=True):
        (folder / "manual" / f"{name}.txt").write_text(f"{text}\nWrite to {EMAIL} about it.\n")
    (folder / "crawl").mkdir()
    for number in range(2):
        _write_warc(folder / "crawl" / f"part-{number}.warc.gz", names[20 + number : 40 : 2], topics)
    with open(folder / "records.jsonl", "w", encoding="utf-8") as file:
        for number, text in enumerate([*texts[40:], *texts[:6], *(_edited(text, generator) for text in texts[40:46])]):
            file.write(json.dumps({"text": text, "number": number}) + "\n")
        file.write(json.dumps({"text": f"{texts[50]}\n{EXAM} for the first time."}) + "\n")
        file.write('{"text": broken\n')
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    shutil.copytree(stdlib / "json", folder / "code", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "exam.jsonl").write_text(json.dumps({"text": EXAM}) + "\n")
    path = folder / "run.toml"
    path.write_text(CONFIG)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a finished run but the times, by its path."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def _edited(text: str, generator: random.Random) -> str:
    words = text.split(" ")
    for place in generator.sample(range(len(words)), max(1, len(words) // 200)):
        words[place] = "changed"
    return " ".join(words)


def _write_warc(path: Path, names: list[str], topics: dict[str, Any]) -> None:
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for name in names:
            paragraphs = "".join(f"<p>{escape(part)}</p>" for part in topics[name].split("\n\n"))
            body = f"<nav>Home Search</nav><main>{paragraphs}</main>"
            page = f"<html><head><title>{name}</title></head><body>{body}</body></html>"
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(
                    f"https://example.org/{name}", "response", payload=io.BytesIO(page.encode()), http_headers=headers,
                    warc_headers_dict={"WARC-Date": "2026-01-01T00:00:00Z", "WARC-Record-ID": f"<urn:name:{name}>"},
                )
            )  # fmt: skip
        file.write(gzip.compress(b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 9999\r\n\r\ncut off")[:-12])


def config_of(inputs: Path, output: Path, **changes: object) -> PipelineConfig:
    """The configuration of the inputs in a folder, for an output of its own."""
    return load_pipeline_config(inputs / "run.toml", overrides={"output": str(output), **changes})
