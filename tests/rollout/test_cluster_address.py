"""What cannot be a cluster is refused in one message, before anything is started."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import pytest

from ript.cli import main as cli
from ript.config.sections import ClusterConfig
from ript.core.capacity import RENDER_GPU
from ript.core.errors import ConfigError, DependencyMissing, OutOfMemory
from ript.core.plugins import Suite
from ript.core.registry import suites
from ript.sims.toy.options import ToyOptions

if TYPE_CHECKING:
    from ript.rollout.cluster.connection import Place
    from ript.rollout.cluster.starter import Starter


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
        (["--cluster=local", "--cluster.backend=gloo"], "cluster.backend has no effect without ranks"),
        (["--cluster=local", "--cluster.gpus_per_node=2"], "cluster.gpus_per_node"),
        (["--cluster=local", "--learn.ranks=2", "--cluster.backend=nccl"], "nccl sums over GPUs that each rank has"),
        (["--cluster.gpus_per_node=1"], "cluster.gpus_per_node has no effect without a cluster"),
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


def on(places: list[Place], address: str = "auto", **size: Any) -> Starter:
    """Starts nodes on these machines of a cluster."""
    from ript.rollout.cluster.node import Node
    from ript.rollout.cluster.starter import Size, Starter

    cluster: Any = SimpleNamespace(address=address, places=lambda first="CPU": places)
    settings = {"inference": "central", "slots": 1}
    return Starter(cluster, size=Size(**size), node=Node, factory=b"", settings=settings, packages=(), check="")


def machine(number: int, gpus: int, cores: int = 8) -> Place:
    from ript.rollout.cluster.connection import Place

    return Place(id=str(number), name=f"10.0.0.{number}", cores=cores, gpus=gpus)


def test_a_machine_has_as_many_nodes_as_its_gpus_have_room_for_and_they_share_its_cores() -> None:
    pytest.importorskip("ray")
    four, two, none = machine(1, 4), machine(2, 2), machine(3, 0)

    def names(starter: Starter) -> str:
        return "".join(place.id for place in starter.places())

    assert names(on([four, two], gpus_per_node=1)) == "121211"
    assert names(on([four, two], gpus_per_node=0.4)) == "121212121111"  # no node has a bit of this GPU, a bit of that
    assert names(on([four, two, none], gpus_per_node=1, nodes=3)) == "121"
    assert names(on([four], "local", gpus_per_node=1)) == "1111"
    assert names(on([four], "local", gpus_per_node=0.5, nodes=3)) == "111"
    assert names(on([four, two, none])) == "123" and names(on([four], "local", nodes=2)) == "11"
    starter = on([four, two, none], gpus_per_node=1, nodes=3)
    starter.places()
    assert [starter._share(place) for place in (four, two)] == [2, 1]
    assert [place.id for place in starter.missing([four, two])] == ["1"] and not starter.missing([four, two, four])
    assert [place.id for place in on([four, two], gpus_per_node=1).missing([four, two, four])] == ["2", "1", "1"]


@pytest.mark.parametrize(
    ("gpus", "size", "complaint"),
    [
        ((0, 0), {}, r"= 1, but no machine of the cluster has a GPU to give \(10.0.0.1, 10.0.0.2\): start Ray on"),
        ((4, 0), {}, r"= 1, but 10.0.0.2 has no GPU to give, .* --num-cpus=0, or say .*\(--cluster.nodes=4\)"),
        ((4, 1), {"nodes": 6}, r"the cluster has GPUs for 5 of them .*: 10.0.0.1, 4 GPUs, 10.0.0.2, 1 GPUs; add some"),
        ((9, 1), {"nodes": 0}, r"= 1, but 10.0.0.1 has 8 cores for 9 nodes: ask for fewer workers or nodes"),
    ],
)
def test_gpus_that_there_are_not_are_refused_with_the_machines(gpus: Any, size: Any, complaint: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=complaint):
        on([machine(1, gpus[0]), machine(2, gpus[1])], gpus_per_node=1, **size).places()


def test_a_policy_that_gpus_of_nodes_have_no_room_for_is_refused() -> None:
    pytest.importorskip("ray")
    gib = 2**30
    members: list[Any] = [SimpleNamespace(name="node 1", place=machine(1, 1), workers=1, memory=99 * gib)]
    members[0].gpu_memory = 15 * gib
    on([], gpus_per_node=1, device="cuda").require_room(members, 14 * gib)
    with pytest.raises(ConfigError, match=r"takes 14.0 GiB, and the GPU of node 1 has 15.0 GiB free for 2 of it"):
        on([], gpus_per_node=0.5, device="cuda").require_room(members, 14 * gib)


@pytest.mark.parametrize(
    ("given", "gpus", "nccl", "complaint"),
    [
        ("3", 0, True, "node 1: Ray gave it GPU 3, but torch .* sees no CUDA device there: install a build of torch"),
        ("0,1", 2, True, "torch sees 2 there .*: unset RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"),
        ("3", 1, False, "has no NCCL there: install a build that has, or give --cluster.backend=gloo"),
        ("3", 1, True, None),
    ],
)
def test_a_node_takes_its_gpu_or_says_why_it_cannot(
    given: str, gpus: int, nccl: bool, complaint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of torch that has no GPU, what it would say of some."""
    import torch

    from ript.rollout.cluster.gpu import take_gpu

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setenv(RENDER_GPU, "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    if complaint is not None:
        with pytest.raises(ConfigError, match=complaint):
            take_gpu("node 1", "cuda", "nccl")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == given
        return
    take_gpu("node 1", "cuda", "nccl")
    assert "CUDA_VISIBLE_DEVICES" not in os.environ and os.environ[RENDER_GPU] == given
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("gpus", "backend", "device", "over"),
    [
        (0, "auto", "cpu", "gloo"),
        (1, "auto", "cuda", "nccl"),
        (0.5, "auto", "cuda", "gloo"),
        (1, "gloo", "cuda", "gloo"),
        (1, "nccl", "cuda", "nccl"),
    ],
)
def test_ranks_sum_from_gpu_to_gpu_where_each_has_its_own(gpus: float, backend: Any, device: str, over: str) -> None:
    config = ClusterConfig(address="auto", gpus_per_node=gpus, backend=backend)
    assert (config.device, config.sums_over) == (device, over)


@pytest.mark.parametrize("error", ["OutOfDiskError", "ObjectStoreFullError"])
def test_an_object_store_without_room_says_for_what_and_what_to_do(error: str) -> None:
    errors = pytest.importorskip("ray.exceptions")
    from ript.rollout.cluster.connection import room_in_store

    told = rf"no room for a record: Ray's object store is full there.*{error}.*--object-store-memory=BYTES"
    with pytest.raises(OutOfMemory, match=told), room_in_store("a record"):
        raise getattr(errors, error)("")


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
