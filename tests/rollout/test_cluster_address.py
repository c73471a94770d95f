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
