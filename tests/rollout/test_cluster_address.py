"""What cannot be a cluster is refused in one message, before anything is started."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from ript.cli import main as cli
from ript.core.errors import ConfigError, DependencyMissing
from ript.core.plugins import Suite
from ript.core.registry import suites
from ript.sims.toy.options import ToyOptions


def test_without_ray_a_cluster_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    from ript.rollout.cluster.connection import Connection

    with pytest.raises(DependencyMissing, match=r"pip install 'ript\[cluster\]'"):
        Connection("local")
    assert cli.main(["rl", "--recipe", "smoke", "--cluster", "local", "--out", "/nowhere/at/all"]) == 1
    assert "ript[cluster]" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["locl", "ray://head:10001", "head", "head:six"])
def test_a_word_that_is_no_address_is_refused(address: str) -> None:
    pytest.importorskip("ray")
    from ript.rollout.cluster.connection import Connection

    with pytest.raises(ConfigError, match="expected local, auto, or HOST:PORT"):
        Connection(address)


def test_an_address_at_which_nothing_listens_is_refused_at_once() -> None:
    pytest.importorskip("ray")
    from ript.rollout.cluster.connection import Connection

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"no Ray cluster answers at 127.0.0.1:{port}.*ray start --head"):
        Connection(f"127.0.0.1:{port}")


def test_a_cluster_that_lets_nobody_in_is_told_with_how_to_bring_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from ript.rollout.cluster.connection import Connection

    def refuse(**settings: Any) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {settings['address']}")

    monkeypatch.setattr(ray, "init", refuse)
    for mode, told in ((None, True), ("token", False)):
        with monkeypatch.context() as patch, socket.socket() as head:
            patch.delenv("RAY_AUTH_MODE", raising=False)
            if mode:
                patch.setenv("RAY_AUTH_MODE", mode)
            head.bind(("127.0.0.1", 0))
            head.listen()
            with pytest.raises(ConfigError, match=r"no Ray cluster answers at 127\.0.*Failed to connect") as refused:
                Connection(f"127.0.0.1:{head.getsockname()[1]}")
        assert ("export RAY_AUTH_MODE=token here and wherever it is started" in str(refused.value)) == told


@pytest.mark.parametrize("other", [{"python_version": "3.99.1"}, {"ray_version": "1.2.3"}])
def test_a_cluster_of_another_python_or_ray_is_refused_with_both_versions(
    monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    """The words are Ray's own, as it compares what a cluster says of itself with this process."""
    ray = pytest.importorskip("ray")
    from ray._private.utils import check_version_info, compute_version_info

    from ript.rollout.cluster.connection import Connection

    ours = dict(zip(("ray_version", "python_version"), compute_version_info(), strict=True))
    theirs = ours | other
    monkeypatch.setattr(ray, "init", lambda **_: check_version_info(theirs, "10.0.0.1"))
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        with pytest.raises(ConfigError, match="has other versions than this process") as refused:
            Connection(f"127.0.0.1:{head.getsockname()[1]}")
    said = str(refused.value)
    assert all(version in said for version in (*theirs.values(), *ours.values())) and "\n" not in said


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--cluster.nodes=2"], "cluster.nodes has no effect without a cluster"),
        (["--learn.ranks=2"], "learn.ranks has no effect without a cluster"),
        (["--cluster=local", "--workers=2"], "rollout.workers has no effect on a cluster"),
        (["--learn.ranks=some"], "learn.ranks: expected"),
    ],
)
def test_settings_of_a_cluster_are_refused_where_they_have_no_effect(words, complaint, capsys) -> None:
    assert cli.main(["rl", "--recipe", "smoke", "--out", "/nowhere/at/all", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_a_policy_that_a_node_has_no_room_for_is_refused_with_what_would_help() -> None:
    pytest.importorskip("ray")
    from ript.rollout.cluster.connection import Place
    from ript.rollout.cluster.node import Node
    from ript.rollout.cluster.starter import Size, Starter

    small = Place(id="1", name="10.0.0.2", cores=4, gpus=0)
    large = Place(id="2", name="10.0.0.3", cores=4, gpus=0)
    members: list[Any] = [
        SimpleNamespace(name="node 1", place=large, workers=4, memory=64 * 2**30),
        SimpleNamespace(name="node 2", place=small, workers=2, memory=32 * 2**30),
        SimpleNamespace(name="node 3", place=small, workers=2, memory=32 * 2**30),  # beside it, on the same machine
    ]

    def require(inference: str, size: int) -> None:
        cluster: Any = SimpleNamespace(address="auto")
        settings = {"inference": inference, "slots": 1}
        starter = Starter(cluster, size=Size(), node=Node, factory=b"", settings=settings, packages=(), check="")
        starter.require_room(members, size)

    require("local", 6 * 2**30)
    with pytest.raises(ConfigError, match=r"the policy takes 7.0 GiB, and node 2 has 32.0 GiB for 5 copies") as refused:
        require("local", 7 * 2**30)
    assert "fewer --cluster.workers_per_node, --rollout.inference=central" in str(refused.value)
    require("central", 10 * 2**30)
    with pytest.raises(ConfigError, match=r"for 3 copies of it \(one a node, and one that is sent\): give machines"):
        require("central", 12 * 2**30)


def test_a_node_with_other_versions_or_without_a_renderer_is_told_in_one_line() -> None:
    from ript.cli.doctor import Check
    from ript.cli.doctor_cluster import Seen, node_check
    from ript.rollout.cluster.connection import Place

    place = Place(id="0", name="10.0.0.2 (ab12cd)", cores=8, gpus=1, store=2**30)
    checks = [Check(name="renderer", ok=True, detail="egl"), Check(name="GPU", ok=False, detail="none", required=False)]
    seen = Seen(checks=checks, versions={"torch": "2.13.0", "mujoco": "3.3.0"}, memory=2 * 2**30)
    good = node_check(place, seen, {"torch": "2.13.0", "mujoco": "3.3.0"}, 2**29)
    assert good.ok and "8 cores, 1 GPUs, 2 GiB" in good.detail and "room for 4 workers" in good.detail
    blind = Seen(checks=[Check(name="renderer", ok=False, detail="no frame", remedy="install libegl1")], **_rest(seen))
    bad = node_check(place, blind, {"torch": "2.13.0", "mujoco": "3.3.1"}, 2**29)
    assert not bad.ok and bad.name == "node 10.0.0.2 (ab12cd)"
    assert (
        "renderer: no frame" in bad.detail and "mujoco 3.3.0 (here 3.3.1)" in bad.detail and "torch" not in bad.detail
    )
    assert bad.remedy.startswith("install libegl1; ")


class Heavy(ToyOptions):
    suite: Literal["heavy"] = "heavy"  # type: ignore[assignment]


def test_a_node_has_room_for_as_many_workers_as_have_room_with_the_suites_simulators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ript.cli.doctor_cluster import WORKER, Seen, node_check, worker_memory
    from ript.rollout.cluster.connection import Place

    asked = []

    def memory(options: object, names: Sequence[str], loaded: int) -> int:
        asked.append((list(names), loaded))
        return 3 * 2**29

    heavy = Suite(**{**vars(suites.get("toy")), "name": "heavy", "options": Heavy, "memory": memory})
    monkeypatch.setitem(suites._registered, "heavy", heavy)
    assert worker_memory("toy") == WORKER and worker_memory("heavy") == 2**31
    assert asked == [([task.key for task in heavy.tasks()], 16)]
    place = Place(id="0", name="node", cores=8, gpus=0, store=2**30)
    found = node_check(place, Seen(checks=[], versions={}, memory=7 * 2**30), {}, worker_memory("heavy"))
    assert "room for 3 workers of a small policy (of 2.0 GiB)" in found.detail


def _rest(seen: object) -> dict:
    return {"versions": seen.versions, "memory": seen.memory}  # type: ignore[attr-defined]
