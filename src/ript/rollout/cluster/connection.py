"""The connection to a Ray cluster: joined or started, what it has, and left again."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ript.core import capacity
from ript.core.errors import ConfigError, DependencyMissing, OutOfMemory, WorkerError

LOCAL, AUTO = "local", "auto"
"""Addresses that are words: a cluster that is started here, and the one that `ray start` made on this machine."""
AUTH_MODE = "RAY_AUTH_MODE"
"""Variable that says whether a cluster asks for a token, `~/.ray/auth_token`. Where it is not set a head does as soon
as there is one (Ray makes one for `--cluster local`), but machines that join it do not know."""
REACHED_SECONDS = 5.0
"""Within which a machine that exists accepts a connection."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a node of ours can be: a machine of the cluster.

    Attributes:
        id: Ray's own.
        name: its address.
        cores: that Ray may give away there.
        gpus: likewise.
        store: bytes of its object store.
    """

    id: str
    name: str
    cores: int
    gpus: int
    store: int = 0


def require_ray() -> Any:
    """The module.

    Raises:
        DependencyMissing: it is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning on each start
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise DependencyMissing(
            f"a cluster needs Ray ({error}): pip install 'ript[cluster]', here and on every node"
        ) from error
    return ray


@contextlib.contextmanager
def room_in_store(what: str) -> Iterator[None]:
    """Within, an object store that is full, as is the disk that Ray moves objects to, is an `OutOfMemory`.

    Args:
        what: has no room there, for the message.
    """
    errors = require_ray().exceptions
    try:
        yield
    except (errors.OutOfDiskError, errors.ObjectStoreFullError) as error:
        raise OutOfMemory(
            f"no room for {what}: Ray's object store is full there, and so is the disk to which it moves objects "
            f"({type(error).__name__}): start Ray with more room (`ray start --object-store-memory=BYTES`, or "
            "--object-spilling-directory on another disk), or lower sampling.groups; `ray memory` says what is there"
        ) from error


class Connection:
    """This process in a cluster. Leave it with `close`.

    Args:
        address: "local", "auto", or HOST:PORT of the head.
        cores: of a cluster that is started here; None: those of this machine.

    Raises:
        DependencyMissing: Ray is not installed.
        ConfigError: no cluster answers there, or it is of another version of Ray or Python.
        WorkerError: a cluster cannot be started.
    """

    def __init__(self, address: str, cores: int | None = None):
        self.ray = require_ray()
        self.address = address
        self._joined = not self.ray.is_initialized()
        if self._joined:
            with _own_signals():
                self._join(address, cores)

    def _join(self, address: str, cores: int | None) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        if address == LOCAL:
            try:
                self.ray.init(
                    address=LOCAL,
                    num_cpus=capacity.cores().usable if cores is None else cores,
                    include_dashboard=False,
                    **quiet,
                )
            except Exception as error:
                self.ray.shutdown()
                raise WorkerError(f"Ray cannot be started here ({_first(error)}): look with `ript doctor`") from error
            return
        if address != AUTO:
            _require_reachable(address)
        try:
            self.ray.init(address=address, **quiet)
        except Exception as error:
            self.ray.shutdown()
            if "ersion" in str(error):
                said = " ".join(str(error).removeprefix("Version mismatch: ").split())[:400]
                raise ConfigError(
                    f"the cluster at {address} has other versions than this process ({said}): install the same "
                    "Python and Ray here and there"
                ) from error
            token = ""
            if os.environ.get(AUTH_MODE) != "token":
                token = f"; of one that asks for a token, export {AUTH_MODE}=token here and wherever it is started"
            raise ConfigError(
                f"no Ray cluster answers at {address} ({_first(error)}): start one with `ray start --head` and "
                f"`ray start --address=HEAD:6379` on each further machine, or give --cluster local{token}"
            ) from error

    def places(self, first: str = "CPU") -> list[Place]:
        """Machines of the cluster that have cores to give: first those of which most cores are free, or with `first` =
        "GPU" most GPUs."""
        found, free = [], self._free(first)
        for node in self.ray.nodes():
            has = node["Resources"]
            if node["Alive"] and has.get("CPU", 0) >= 1:
                found.append(
                    Place(
                        id=node["NodeID"],
                        name=f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})",
                        cores=int(has["CPU"]),
                        gpus=int(has.get("GPU", 0)),
                        store=int(has.get("object_store_memory", 0)),
                    )
                )
        return sorted(found, key=lambda place: (-free.get(place.id, 0.0), place.id))

    def _free(self, kind: str) -> dict[str, float]:
        """Machine -> cores or GPUs that nobody has taken at the moment; empty where Ray does not tell."""
        with contextlib.suppress(Exception):
            from ray._private.state import available_resources_per_node

            return {name: float(has.get(kind, 0.0)) for name, has in available_resources_per_node().items()}
        return {}

    def close(self) -> None:
        """Leave the cluster, which ends what this process started there; one that was started here ends."""
        if self._joined:
            with _own_signals(), contextlib.suppress(Exception):
                self.ray.shutdown()


def _require_reachable(address: str) -> None:
    """Raise `ConfigError` unless something listens at HOST:PORT: Ray itself tries for half a minute."""
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        raise ConfigError(
            f"cluster = {address!r}: expected local, auto, or HOST:PORT of the head, as `ray start --head` says it"
        )
    try:
        socket.create_connection((host, int(port)), timeout=REACHED_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address} ({error}): start one with `ray start --head` there, or give "
            "--cluster local"
        ) from error


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray sets handlers of its own for SIGTERM; within, they come and go."""
    try:
        before = signal.getsignal(signal.SIGTERM)
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, before)


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
