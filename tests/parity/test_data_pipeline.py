"""The token pipeline as a user runs it: what comes out, and that neither kills nor workers nor damage change it."""

import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector

from tests.pipeline_inputs import EMAIL, EXAM, config_of, files_of, write_inputs
from train.data.config import load_pipeline_config
from train.data.filesystem import resolve
from train.data.pipeline import DataPipeline
from train.data.report import PipelineReport
from train.data.run_folder import RunMismatch
from train.data.storage import HDF5Storage

COMMAND = [sys.executable, "-m", "cluster.cli", "data", "run", "--json", "--config"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PipelineReport]:
    """A run in this process that nothing disturbed."""
    output = tmp_path_factory.mktemp("finished")
    return output, DataPipeline(config_of(inputs, output)).run()


def rows_of(folder: Path, kind: str) -> list[dict[str, object]]:
    return [row for path in sorted((folder / kind).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def run_limited(inputs: Path, output: Path, limit: Callable[[], None] | None) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, str(inputs / "run.toml"), "--output", str(output)]
    return subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False, timeout=600)


def test_every_document_is_accounted_for(finished: tuple[Path, PipelineReport]) -> None:
    output, report = finished
    first, *dropped, last = report.funnel
    assert first.documents == last.documents + sum(row.documents for row in dropped)
    assert last.documents == len(rows_of(output, "text")) == report.documents_out
    joined = sum(row.documents for row in dropped if row.step.startswith("joined"))
    assert len(rows_of(output, "audit")) == first.documents - last.documents - joined
    assert {source.name: source.documents_out > 0 for source in report.sources} == dict.fromkeys(
        ("manual", "crawl", "records", "code"), True
    )


def test_duplicates_name_the_document_that_stays(finished: tuple[Path, PipelineReport]) -> None:
    output, report = finished
    kept = {row["id"] for row in rows_of(output, "text")}
    duplicates = [
        row
        for row in rows_of(output, "audit")
        if row["reasons"][0]["rule"].startswith("duplicate.")  # type: ignore[index]
    ]
    assert report.duplicates["near"] >= 5
    assert len(duplicates) == report.duplicates["near"] + report.duplicates["exact"]
    assert {dict(row["metadata"])["duplicate_of"] for row in duplicates} <= kept  # type: ignore[call-overload]
    assert report.duplicates["estimate"]["precision"] == 1.0


def test_evaluation_items_go_and_are_listed(finished: tuple[Path, PipelineReport]) -> None:
    output, _ = finished
    assert not any(EXAM in str(row["text"]) for row in rows_of(output, "text"))
    listed = [row for row in rows_of(output, "audit") if EXAM in str(row["text"])]
    assert [reason["rule"] for row in listed for reason in row["reasons"]][-1] == "decontamination.exam"  # type: ignore[attr-defined]


def test_personal_data_is_nowhere(finished: tuple[Path, PipelineReport]) -> None:
    output, report = finished
    rows = rows_of(output, "text") + rows_of(output, "audit")
    assert not any(EMAIL in str(row) for row in rows)
    assert report.cleaning["EMAIL"] >= 20


def test_what_cannot_be_read_is_named_and_the_rest_is_read(finished: tuple[Path, PipelineReport]) -> None:
    output, report = finished
    losses = [json.loads(line) for line in (output / "losses.jsonl").read_text().splitlines()]
    assert report.losses == len(losses)
    by_path = {loss["path"]: loss for loss in losses}
    assert by_path["records.jsonl"]["offset"] > 0
    assert {path.rpartition("/")[2] for path in by_path} >= {"part-0.warc.gz", "part-1.warc.gz"}
    assert all(loss["reason"] and loss["fix"] for loss in losses)


def test_tokens_are_the_documents_in_order(finished: tuple[Path, PipelineReport]) -> None:
    import tokenizers

    output, report = finished
    tokenizer = tokenizers.Tokenizer.from_file(str(output / "tokenizer" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    end = tokenizer.token_to_id("<|endoftext|>")
    expected = [
        token
        for row in rows_of(output, "text")
        for token in [*tokenizer.encode(str(row["text"]), add_special_tokens=False).ids, end]
    ]
    storage = HDF5Storage()
    found: list[int] = []
    shards = json.loads((output / "tokens" / "manifest.json").read_text())["token_shards"]
    for row in shards:
        shard = storage.open(str(output / "tokens" / row["path"]), sequence_length=128)
        reader = storage.reader(shard)
        sequences = np.asarray(reader.read(0, shard.num_sequences * 128 + 1))
        assert shard.num_sequences == row["num_sequences"]
        found += sequences[:-1].tolist()
        last = int(sequences[-1])
        reader.close()
    found.append(last)
    assert len(shards) == report.shards > 1
    assert found[: len(expected)] == expected
    assert set(found[len(expected) :]) <= {end}
    assert report.tokens_out == len(expected)


def test_each_document_can_be_found_among_the_tokens(finished: tuple[Path, PipelineReport]) -> None:
    output, report = finished
    rows = [
        row for path in sorted((output / "tokens" / "documents").glob("*")) for row in pq.read_table(path).to_pylist()
    ]
    assert [row["id"] for row in rows] == [row["id"] for row in rows_of(output, "text")]
    assert sum(row["num_tokens"] for row in rows) == report.tokens_out


KILLED = """
import os, signal, sys
left, is_after = int(sys.argv[1]), sys.argv[2] == "after"
replace = os.replace
def replace_or_die(*arguments):
    global left
    left -= 1
    if left == 0:
        if is_after:
            replace(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments)
os.replace = replace_or_die
from cluster.cli import run
sys.exit(run(sys.argv[3:]))
"""
"""The command line, killed at the n-th file that it gives its name, before or after."""


def test_a_run_that_is_killed_again_and_again_gives_the_same_bytes(
    inputs: Path, finished: tuple[Path, PipelineReport], tmp_path: Path
) -> None:
    generator = random.Random(1)
    num_killed = 0
    arguments = ["data", "run", "--config", str(inputs / "run.toml"), "--output", str(tmp_path)]
    while True:
        place, moment = generator.randint(3, 25), generator.choice(["before", "after"])
        command = [sys.executable, "-c", KILLED, str(place), moment, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        num_killed += 1
    assert num_killed >= 4
    assert files_of(tmp_path) == files_of(finished[0])


def test_a_full_disk_is_named_and_what_was_finished_stays(
    inputs: Path, finished: tuple[Path, PipelineReport], tmp_path: Path
) -> None:
    failed = run_limited(inputs, tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000)))
    assert failed.returncode == 1
    message = json.loads(failed.stdout)["error"]["message"]
    assert "disk is full" in message
    assert str(tmp_path) in message
    done = len(list((tmp_path / "work" / "prepare").glob("*.json")))
    assert done >= 1
    assert run_limited(inputs, tmp_path, None).returncode == 0
    assert files_of(tmp_path) == files_of(finished[0])


def test_a_later_run_with_the_same_index_knows_the_documents(inputs: Path, tmp_path: Path) -> None:
    index = {"path": str(tmp_path / "index")}
    first = DataPipeline(config_of(inputs, tmp_path / "first", index=index)).run()
    again = DataPipeline(config_of(inputs, tmp_path / "first", index=index)).run()
    assert again == first
    tokenizer = {"folder": str(tmp_path / "first" / "tokenizer")}
    second = DataPipeline(config_of(inputs, tmp_path / "second", index=index, tokenizer=tokenizer)).run()
    assert second.documents_out == 0
    known = second.rules["duplicate.exact_in_index"] + second.rules.get("duplicate.near_in_index", 0)
    assert known >= first.documents_out


def test_a_second_output_with_the_same_index_is_refused_instead_of_empty(inputs: Path, tmp_path: Path) -> None:
    index = {"path": str(tmp_path / "index")}
    DataPipeline(config_of(inputs, tmp_path / "first", index=index)).run()
    with pytest.raises(RunMismatch, match="holds this run's documents already"):
        DataPipeline(config_of(inputs, tmp_path / "second", index=index)).run()


def test_a_run_that_is_done_again_does_not_meet_its_own_documents(inputs: Path, tmp_path: Path) -> None:
    config = config_of(inputs, tmp_path / "out", index={"path": str(tmp_path / "index")})
    report = DataPipeline(config).run()
    (tmp_path / "out" / "manifest.json").unlink()
    assert DataPipeline(config).run() == report


def test_addresses_that_citations_part_are_masked_and_so_are_reasons_of_losses(inputs: Path, tmp_path: Path) -> None:
    manual = next((inputs / "manual").iterdir()).read_text()
    text = f"{manual}\nAsk alice@exa[12]mple.com for all of the rest of it.\n"
    (tmp_path / "in").mkdir()
    rows = [{"text": text, "time": 0, "who": "dave@mail.example.org"}, {"text": "x", "time": "carol@mail.example.org"}]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "name": "s", "kind": "jsonl", "location": str(tmp_path / "in"), "time_field": "time", "metadata_fields": ["who"],
    }  # fmt: skip
    filters = ("gopher_quality", "fineweb", "gopher_repetition")
    quality = {name: {"enabled": False} for name in filters}
    DataPipeline(config_of(inputs, tmp_path / "out", sources=[source], quality=quality)).run()
    written = rows_of(tmp_path / "out", "text") + rows_of(tmp_path / "out", "audit")
    assert len(written) == 1
    everything = str(written) + (tmp_path / "out" / "losses.jsonl").read_text()
    assert "example.com" not in everything
    assert "mail.example.org" not in everything


def test_another_file_system_holds_the_same_files(inputs: Path, finished: tuple[Path, PipelineReport]) -> None:
    location = f"memory://{inputs.parent.name}/out"
    for restart in (False, True):
        DataPipeline(load_pipeline_config(inputs / "run.toml", output=location)).run(restart=restart)
    filesystem, root = resolve(location)
    found = [info.path for info in filesystem.get_file_info(FileSelector(root, recursive=True)) if info.is_file]
    files = {
        path.removeprefix(f"{root}/"): filesystem.open_input_stream(path, compression=None).read() for path in found
    }
    files.pop("run.json")
    assert files == files_of(finished[0])


def test_lines_that_stand_in_many_documents_stay_in_the_first(inputs: Path, tmp_path: Path) -> None:
    source = tmp_path / "pages"
    source.mkdir()
    notice = "All pages of this site carry this very same notice at their end."
    for number, path in enumerate(sorted((inputs / "manual").iterdir())):
        (source / f"{number:03d}.txt").write_text(f"{path.read_text()}\n{notice}\n")
    sources = [{"name": "pages", "kind": "text", "location": str(source)}]
    config = config_of(inputs, tmp_path / "out", sources=sources, line_dedup={"pieces": "line"})
    report = DataPipeline(config).run()
    rows = rows_of(tmp_path / "out", "text")
    assert sum(notice in str(row["text"]) for row in rows) == 1
    assert report.cleaning.get("repeated_lines_dropped", 0) == 0  # counted where it happens, in the documents
    dropped = [dict(row["counts"]).get("repeated_lines_dropped", 0) for row in rows]  # type: ignore[call-overload]
    assert sum(count > 0 for count in dropped) >= len(rows) - 1
    (step,) = [row for row in report.funnel if row.pieces]
    assert step.pieces == sum(dropped)
    assert step.chars >= (len(rows) - 1) * len(notice)
    assert step.tokens > 0


def test_a_duplicate_of_a_document_that_lost_all_its_lines_is_followed_through_the_audit(
    inputs: Path, tmp_path: Path
) -> None:
    manual = [path.read_text() for path in sorted((inputs / "manual").iterdir())]
    lines = [
        f"The {number}th line of them all is long enough to be compared with {number + 7}." for number in range(40)
    ]
    whole = "\n".join(lines)
    texts = [f"{manual[0]}\n" + "\n".join(lines[:20]), f"{manual[1]}\n" + "\n".join(lines[20:]), whole, f"{whole}  "]
    (tmp_path / "in").mkdir()
    for number, text in enumerate([*texts, *manual[2:]]):
        (tmp_path / "in" / f"{number:03d}.txt").write_text(text)
    sources = [{"name": "s", "kind": "text", "location": str(tmp_path / "in"), "language": "en"}]
    filters = ("gopher_quality", "fineweb", "gopher_repetition", "c4")
    changes = {
        "line_dedup": {"pieces": "line"},
        "quality": {name: {"enabled": False} for name in filters},
    }
    DataPipeline(config_of(inputs, tmp_path / "out", sources=sources, **changes)).run()
    audit = {row["id"]: row for row in rows_of(tmp_path / "out", "audit")}
    kept = {row["id"] for row in rows_of(tmp_path / "out", "text")}
    (copy,) = [row for row in audit.values() if row["reasons"][0]["rule"] == "duplicate.exact"]  # type: ignore[index]
    original = audit[dict(copy["metadata"])["duplicate_of"]]  # type: ignore[call-overload]
    assert original["id"] not in kept
    assert [reason["rule"] for reason in original["reasons"]] == ["line_dedup.nothing_left"]  # type: ignore[attr-defined]
    assert original["text"] == whole


def test_tokens_that_packing_leaves_out_and_responses_that_were_passed_over_are_reported(
    inputs: Path, tmp_path: Path
) -> None:
    packing = {"sequence_length": 128, "sequences_per_shard": 200, "tail": "drop"}
    web = {"media_types": ["text/plain"]}
    report = DataPipeline(config_of(inputs, tmp_path, packing=packing, web=web)).run()
    *_, out, tail = report.funnel
    assert (out.step, out.tokens) == ("out", report.tokens_out)
    assert report.dropped_tokens == tail.tokens == report.tokens_out - report.sequences * 128 - 1
    assert report.responses["media_type"] >= 10
    assert "pages" not in report.responses
    page = (tmp_path / "report.html").read_text()
    assert "media_type" in page
    assert tail.step in page


def test_best_fit_keeps_documents_whole(inputs: Path, tmp_path: Path) -> None:
    packing = {"sequence_length": 4096, "sequences_per_shard": 8, "order": "best_fit"}
    report = DataPipeline(config_of(inputs, tmp_path, packing=packing)).run()
    rows = [
        row for path in sorted((tmp_path / "tokens" / "documents").glob("*")) for row in pq.read_table(path).to_pylist()
    ]
    assert all(row["first_token"] // 4096 == (row["first_token"] + row["num_tokens"] - 1) // 4096 for row in rows)
    assert sum(row["num_tokens"] for row in rows) == report.tokens_out
    assert report.padding_tokens > 0
