"""The token pipeline on Ray: the same bytes as in one process, also when a worker dies."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.pipeline_inputs import files_of, write_inputs
from train.data.config import load_pipeline_config
from train.data.pipeline import DataPipeline, DriverKind


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def expected(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("local")
    DataPipeline(load_pipeline_config(inputs, overrides={"output": str(output)})).run()
    return files_of(output)


@pytest.mark.parametrize("driver", ["ray", "ray_data"])
def test_a_driver_gives_the_bytes_of_one_process(
    inputs: Path, expected: dict[str, bytes], tmp_path: Path, driver: DriverKind
) -> None:
    config = load_pipeline_config(inputs, overrides={"output": str(tmp_path)})
    DataPipeline(config, driver=driver, num_workers=2).run()
    assert files_of(tmp_path) == expected


def test_a_worker_that_dies_is_replaced(inputs: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    config = load_pipeline_config(inputs, overrides={"output": str(tmp_path)})
    killed: list[int] = []

    def kill_a_worker(label: str, done: int, total: int) -> None:
        busy = [
            process.pid
            for process in psutil.Process().children(recursive=True)
            if process.name().startswith("ray::run_job")
        ]
        if busy and len(killed) < 2:
            os.kill(busy[0], signal.SIGKILL)
            killed.append(busy[0])

    DataPipeline(config, driver="ray", num_workers=2).run(on_progress=kill_a_worker)
    assert killed
    assert files_of(tmp_path) == expected
