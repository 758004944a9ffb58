"""`autonomous up`: start Ray on this machine, then the actors, then the Serve application.

In flows a `SystemConfig`; out flows a `RunningState` in home/run.json. Every stage is timed and reported. If a stage
fails, everything that was started is ended again: nothing is left half up. On a cluster that runs already, only
`deploy` is used (cluster/jobs/agent.py).
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from autonomous.home_lock import HomeInUse, own_home
from autonomous.safety.heartbeat import Heartbeat
from autonomous.safety.latch import Latch
from autonomous.safety.processes import forget_all
from cluster.config import SystemConfig
from cluster.processes import HOME_VARIABLE, end_processes, find_processes
from cluster.state import RunningState, read_state, write_state
from cluster.watchdog import WatchdogProblem, is_watchdog, start_watchdog
from train.model.embedded import EMBEDDED_NAME, ModelFolderProblem, check_model_folder, materialise_base_model

OnStage = Callable[[str, float | None], None]
"""Called with (stage, None) when it begins and (stage, seconds) when it ends."""

logger = logging.getLogger(__name__)


class BringUpError(RuntimeError):
    """The system did not start; nothing of it is left running."""


class AlreadyUp(BringUpError):
    """A system of the same home runs."""


class PortInUse(BringUpError):
    """Another program listens on a port that the configuration names."""


@dataclass(frozen=True)
class UpReport:
    """What runs now, and where the time went (seconds by stage)."""

    url: str
    dashboard_url: str
    stages: dict[str, float]
    pids: dict[str, int]


class StageClock:
    """Times the stages and tells the listener."""

    def __init__(self, on_stage: OnStage) -> None:
        self.seconds: dict[str, float] = {}
        self._on_stage = on_stage

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._on_stage(stage, None)
        start = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - start, 2)
        self._on_stage(stage, self.seconds[stage])


def bring_up(config: SystemConfig, *, on_stage: OnStage, config_path: Path | None = None) -> UpReport:
    """Start everything on this machine and wait until it answers.

    Raises AlreadyUp, PortInUse, BringUpError (full sentences with the fix); ends what it had started.
    """
    home = config.home
    clock = StageClock(on_stage)
    with _exclusive(home):
        _refuse_if_up(home)
        _refuse_if_stopped(home)
        http_port = _port(config.http.host, config.http.port, field="http.port")
        dashboard_port = _port(config.ray.dashboard_host, config.ray.dashboard_port, field="ray.dashboard_port")
        with clock("model"):
            model_folder = prepare_model(config)
        head: subprocess.Popen[bytes] | None = None
        try:
            with clock("watchdog"):
                _watch(home)
            with clock("ray"):
                head, gcs_address, temp_dir = _start_ray(config, dashboard_port)
            report = _deploy_from_here(config, model_folder, gcs_address, http_port, clock)
            state = RunningState(
                url=f"http://{config.http.host}:{http_port}",
                dashboard_url=f"http://{config.ray.dashboard_host}:{dashboard_port}",
                ray_address=gcs_address,
                ray_temp_dir=str(temp_dir),
                token_path=str(home / "ray-token"),
                head_pid=head.pid,
                head_created_at=psutil.Process(head.pid).create_time(),
                started_at=time.time(),
                config_path=str(config_path or ""),
                session_dir=str((temp_dir / "session_latest").resolve()),
            )
            write_state(home, state)
        except BaseException:
            end_processes(home, head_pid=head.pid if head else None, grace_s=10.0)
            Heartbeat(home / "safety").remove()
            raise
    return UpReport(url=state.url, dashboard_url=state.dashboard_url, stages=clock.seconds, pids=report)


def _watch(home: Path) -> None:
    try:
        start_watchdog(home)
    except WatchdogProblem as error:
        raise BringUpError(str(error)) from error


def prepare_model(config: SystemConfig) -> Path:
    """The checked folder of the base model; the embedded one is materialised on first use."""
    try:
        if config.model.source == "embedded":
            folder = materialise_base_model(
                config.model.cache.expanduser().resolve() / EMBEDDED_NAME, progress=logger.info
            )
        else:
            folder = Path(config.model.source).expanduser().resolve()
        check_model_folder(folder)
    except ModelFolderProblem as error:
        raise BringUpError(f"model.source = '{config.model.source}': {error}") from error
    return folder


@contextlib.contextmanager
def _exclusive(home: Path) -> Iterator[None]:
    """Only one `up` of a home at a time. `down` does not wait: it must be able to end a hung `up`."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (home / ".up.lock").open("w")
    except OSError as error:
        raise BringUpError(
            f"home = '{home}' cannot be written: {error}; choose another folder in the configuration"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyUp(f"another `autonomous up` is starting the system of {home}; wait for it") from error
        yield


def _refuse_if_up(home: Path) -> None:
    if state := read_state(home):
        raise AlreadyUp(f"the system of {home} is up at {state.url}; use it, or end it with: autonomous down")
    if leftovers := [process.pid for process in find_processes(home) if not is_watchdog(process)]:
        raise AlreadyUp(
            f"{len(leftovers)} processes of a crashed system of {home} are left (pids {leftovers[:5]}); end them with: "
            "autonomous down"
        )
    try:
        own_home(home).close()  # the agent actor takes it
    except HomeInUse as error:
        raise BringUpError(str(error)) from error
    forget_all(home / "safety")  # nothing of them is left


def _refuse_if_stopped(home: Path) -> None:
    """A stop of everything holds until a person resets it: the engine would wait for that and never answer."""
    latch = home / "safety" / "latch"
    if latch.exists() and (state := Latch.open(latch).state()).forbids("all"):
        raise BringUpError(
            f"everything was {state.mode} by {state.by}: {state.reason}. A person permits it again with: "
            'autonomous reset --reason "..." --by NAME'
        )


def _port(host: str, port: int, *, field: str) -> int:
    """`port` if it is free, or any free port for 0."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"{field} = {port} on {host} cannot be used: {error.strerror}; "
                f"end the program that listens there, or set {field} to another port (0 takes a free one)"
            ) from error
        return int(probe.getsockname()[1])


def _start_ray(config: SystemConfig, dashboard_port: int) -> tuple[subprocess.Popen[bytes], str, Path]:
    """Start a Ray head in its own session, outliving this process. Returns (head, address, temp folder)."""
    home = config.home
    token = home / "ray-token"
    if not token.exists():
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    # Unix socket paths are limited to 107 characters, so the folder cannot lie in the home.
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:8]
    temp_dir = Path(tempfile.gettempdir()) / f"autonomous-{os.getuid()}-{digest}"
    temp_dir.mkdir(mode=0o700, exist_ok=True)
    port = _port("127.0.0.1", 0, field="ray.port")
    os.environ.update(ray_environment(config))
    (home / "logs").mkdir(exist_ok=True)
    ray_command = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    with (home / "logs" / "ray.log").open("wb") as log:
        head = subprocess.Popen(
            [
                ray_command, "start", "--head", "--block", f"--port={port}", f"--temp-dir={temp_dir}",
                f"--num-cpus={config.ray.num_cpus or max(2, os.cpu_count() or 2)}", f"--num-gpus={config.ray.num_gpus}",
                f"--object-store-memory={config.ray.object_store_bytes}",
                f"--dashboard-host={config.ray.dashboard_host}", f"--dashboard-port={dashboard_port}",
                "--disable-usage-stats", "--no-monitor",
            ],
            stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True, cwd=home, env=os.environ | {HOME_VARIABLE: str(home)},
        )  # fmt: skip
    deadline = time.monotonic() + config.ray.start_timeout_s
    while time.monotonic() < deadline:
        text = (home / "logs" / "ray.log").read_text(errors="replace")
        if "Ray runtime started" in text:
            address = next(
                (line.split("--address='")[1].split("'")[0] for line in text.splitlines() if "--address='" in line),
                f"127.0.0.1:{port}",
            )
            return head, address, temp_dir
        if head.poll() is not None:
            raise BringUpError(
                f"Ray did not start (exit {head.returncode}); the last lines of {home}/logs/ray.log:\n{text[-1500:]}"
            )
        time.sleep(0.1)
    raise BringUpError(f"Ray did not start within {config.ray.start_timeout_s:.0f} s; see {home}/logs/ray.log")


def ray_environment(config: SystemConfig) -> dict[str, str]:
    """What every process of the system needs in its environment. Token authentication is on, everywhere, on purpose."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(config.home / "ray-token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_agent_register_timeout_ms": "180000",  # 30 s is too short for a loaded machine
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "2",  # nothing drains: the actors live for ever, their state is on disk
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }


def _deploy_from_here(
    config: SystemConfig, model_folder: Path, address: str, http_port: int, clock: StageClock
) -> dict[str, int]:
    """Connect to the new cluster as a driver, deploy, disconnect. Detached actors and Serve stay."""
    import ray

    from actors.base import NAMESPACE

    with clock("connect"):
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    try:
        return deploy(config, model_folder=model_folder, http_port=http_port, clock=clock)
    finally:
        ray.shutdown()


def deploy(config: SystemConfig, *, model_folder: Path, http_port: int, clock: StageClock) -> dict[str, int]:
    """Create or adopt the actors and the Serve application on the connected cluster; wait until all answer.

    Returns the pids of the actors by name. Raises BringUpError if a store cannot be opened.
    """
    from actors.registry import ensure_all, prepare_home
    from memory.store import StoreProblem
    from serve.deployments import deploy_application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with clock("actors"):
        prepare_home(config.home, model_folder=model_folder, agent=config.agent)
        try:
            pids = ensure_all(
                config.home,
                model_folder=model_folder,
                agent=config.agent,
                ingest=config.ingest,
                memory=config.memory,
            )
        except StoreProblem as error:
            raise BringUpError(f"a store cannot be opened: {error}") from error
    with clock("serve and engine"):
        deploy_application(
            config.http,
            config.engine,
            config.rag,
            http_port=http_port,
            model_folder=model_folder,
            screen_level=config.agent.safety_level,
            latch=config.home / "safety" / "latch",
            feedback=config.agent.feedback,
        )
    with clock("first answer"):
        wait_until_ready(f"http://{config.http.host}:{http_port}", timeout_s=config.ray.start_timeout_s)
    return pids


def wait_until_ready(url: str, *, timeout_s: float) -> None:
    """Return when all parts answer. Raises BringUpError."""
    deadline = time.monotonic() + timeout_s
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            response = httpx.get(f"{url}/readyz", timeout=10.0, trust_env=False)
            if response.status_code == httpx.codes.OK:
                return
            last = response.text
        except httpx.TransportError as error:
            last = repr(error)
        time.sleep(0.2)
    raise BringUpError(f"{url}/readyz did not become ready within {timeout_s:.0f} s: {last}")
