"""What cannot be a cluster is refused in one message, before anything is started."""

from __future__ import annotations

import socket
import sys

import pytest

from ript.cli import main as cli
from ript.core.errors import ConfigError, DependencyMissing


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


def test_a_node_with_other_versions_or_without_a_renderer_is_told_in_one_line() -> None:
    from ript.cli.doctor import Check
    from ript.cli.doctor_cluster import Seen, node_check
    from ript.rollout.cluster.connection import Place

    place = Place(id="0", name="10.0.0.2 (ab12cd)", cores=8, gpus=1, store=2**30)
    checks = [Check(name="renderer", ok=True, detail="egl"), Check(name="GPU", ok=False, detail="none", required=False)]
    seen = Seen(checks=checks, versions={"torch": "2.13.0", "mujoco": "3.3.0"}, memory=2 * 2**30)
    good = node_check(place, seen, {"torch": "2.13.0", "mujoco": "3.3.0"})
    assert good.ok and "8 cores, 1 GPUs, 2 GiB" in good.detail and "room for 4 workers" in good.detail
    blind = Seen(checks=[Check(name="renderer", ok=False, detail="no frame", remedy="install libegl1")], **_rest(seen))
    bad = node_check(place, blind, {"torch": "2.13.0", "mujoco": "3.3.1"})
    assert not bad.ok and bad.name == "node 10.0.0.2 (ab12cd)"
    assert (
        "renderer: no frame" in bad.detail and "mujoco 3.3.0 (here 3.3.1)" in bad.detail and "torch" not in bad.detail
    )
    assert bad.remedy.startswith("install libegl1; ")


def _rest(seen: object) -> dict:
    return {"versions": seen.versions, "memory": seen.memory}  # type: ignore[attr-defined]
