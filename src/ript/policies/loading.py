"""A policy from where it is: a folder, or a name on the model hub, whatever kind it is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ript.core import arguments, policy_calls
from ript.core.errors import ConfigError, PolicyError
from ript.core.files import absolute, expanded
from ript.core.interfaces import PostTrainable
from ript.core.plugins import PolicyKind
from ript.core.registry import kinds, suites
from ript.policies import folder as policy_folder
from ript.policies import hub
from ript.policies.published import show_published


def load_policy(folder: str | Path, device: str = "cpu") -> PostTrainable:
    """Load a policy folder, whatever kind of policy it holds.

    Args:
        folder: a folder, or "hf://owner/name" or "hf://owner/name@revision", which is fetched from the model hub first.
            Where another program wrote it, it acts in what the protocol of its suite shows.
        device: "cpu" or "cuda"; where its kind can, weights go there straight from their files.

    Raises:
        PolicyError: missing, partial, corrupt, of an unknown kind or another version.
        DependencyMissing: what its kind needs is not here.
        DeviceTooSmall: the device has no room for it.
    """
    place, kind = placed(folder)
    if device != "cpu" and kind.load_on:
        policy = policy_calls.require_made(kind.load_on(place, device))
    else:
        policy = policy_calls.require_made(kind.load(place))
        policy = policy if device == "cpu" else policy_calls.to(policy, device)
    if policy_folder.foreign(place) is not None and not policy.simulator.render:
        show_published(policy)
    return policy


def kind_in(folder: str | Path) -> str:
    """The kind of the policy in a folder, or under a name on the hub.

    Raises:
        PolicyError: as `load_policy`.
    """
    return placed(folder)[1].kind


def require_suite(folder: str | Path) -> None:
    """Raise unless the simulator suite is here that the policy in a folder, or under a name on the hub, was made for.

    It is not loaded for that. Where another program wrote it, no suite is recorded, and nothing is required.

    Raises:
        PolicyError: as `load_policy`.
        UnknownNameError: there is no such suite; says what to install.
        DependencyMissing: the suite's module cannot be imported.
    """
    place, _ = placed(folder)
    if policy_folder.foreign(place) is None and (suite := policy_folder.suite(place)):
        suites.get(suite)


def placed(folder: str | Path) -> tuple[Path, PolicyKind]:
    """Where a policy lies, fetched if it must be, and its kind.

    Raises:
        PolicyError: there is no policy, or one of an unknown kind.
    """
    fetched = isinstance(folder, str) and hub.on_hub(folder)
    place = arguments.place("folder", hub.fetch(str(folder)) if fetched else folder)
    if foreign := policy_folder.foreign(place):
        for known in kinds.all()[0].values():
            if known.reads(foreign):
                return place, known
    kind = policy_folder.kind(place)
    if fetched and ":" in kind:  # what a stranger names is not imported
        raise PolicyError(f"{folder} is of kind {kind!r}, a file that is not part of it: fetch both, and give its path")
    if kind not in kinds:
        raise PolicyError(
            f"{folder} holds a {kind!r} policy, but known here are: {', '.join(kinds.names())}; install the package "
            "that brings this kind"
        )
    return place, kinds.get(kind)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a policy comes from, for the record of what is made from it.

    Attributes:
        name: a folder, or the name on the hub, as it was given.
        revision: on the hub: the commit that the name stood for; otherwise None.
    """

    name: str
    revision: str | None = None

    @property
    def place(self) -> str:
        """What `load_policy` takes: the same policy whenever it is asked for, as far as the place can promise that."""
        return self.name if self.revision is None else hub.at_commit(self.name, self.revision)

    @property
    def content(self) -> str:
        """What tells its content from another: the fingerprint of a folder, the commit of a name on the hub."""
        return self.revision or policy_folder.fingerprint(expanded(self.name))

    def record(self, key: str) -> dict[str, str]:
        """For a run's config.json: a folder's absolute path and its content, or the name on the hub and the commit that
        it stood for."""
        if self.revision is None:
            return {key: str(absolute(self.name)), f"{key}_content": self.content}
        return {key: self.name, f"{key}_revision": self.revision}


def origin_of(policy: str | Path) -> Origin:
    """Where this policy is; one on the hub is fetched.

    Raises:
        PolicyError: neither the hub nor its cache has it.
    """
    if isinstance(policy, str) and hub.on_hub(policy):
        return Origin(policy, hub.commit_of(policy))
    return Origin(str(arguments.place("policy", policy)))


def require_policy(policy: object) -> None:
    """Raise `ConfigError` unless it is a policy, or says where one is; `PolicyError` of a policy that does not say of
    itself what every one does."""
    if isinstance(policy, str | Path | Origin):
        return
    if not hasattr(policy, "act") or isinstance(policy, type):
        got = f"the class {policy.__name__}: give a policy of it" if isinstance(policy, type) else repr(policy)
        raise ConfigError(f"policy must be a policy folder, a name on the hub (hf://owner/name) or a policy, got {got}")
    policy_calls.require_made(policy)
