"""The two records by which a folder or an installed package joins the house: a suite of simulators, a kind of policy.

`core.registry` finds them by name. Nothing outside a suite's or a kind's own folder names what is in it.
"""

from __future__ import annotations

import fnmatch
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ript.core.device_memory import Demands
from ript.core.errors import UnknownNameError
from ript.core.interfaces import PostTrainable, Simulator, SimulatorFactory, StockEnvironment
from ript.core.specimens import Specimens
from ript.core.supervised import DemoSource, Stage
from ript.core.types import ForeignDemo, Recording, SimulatorSpec, Task

if TYPE_CHECKING:
    from ript.core.options import PolicyOptions, Settings, SimOptions, TrainingOptions


class SimulatorMaker(typing.Protocol):
    """(task key, options) -> a new simulator of that task."""

    def __call__(self, key: str, /, options: Any) -> Simulator: ...


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Simulators of one kind: `sims/NAME/suite.py` holds one as SUITE. Making the record imports no simulator.

    Attributes:
        name: as in "NAME/task".
        summary: one line of what it is.
        options: class of its settings; a subclass of `SimOptions` whose `suite` is the name.
        tasks: all tasks, in a stable order, with their own horizons.
        make: (task key, options) -> a new simulator of that task. Picklable: worker processes call it.
        options_of: spec -> the options that give it: what a policy or demonstrations were made with. The inverse of
            `spec`, without the horizon.
        spec: options -> what simulators with them show and take, without building one; None where that depends on the
            task.
        find: a name as people write it -> task, or None: other spellings, and tasks that `tasks` does not list.
        lists: named lists: name -> task names.
        protocols: name -> the options with which results are published, such as the horizon; "published" are those that
            a published policy was trained with, its cameras among them.
        demonstrations: where demonstrations come from, the usual one first: "expert", its simulators are
            `Demonstrator`s with a scripted one; "human", they are `Recorded` and bring what people did.
        converts: (demonstration in a file of the suite's makers, options, whether its pictures are drawn anew) -> the
            recording with its looks, and what it was seen through; None: there are no such files.
        wrote: whether a demonstration in a file of another program is one that `converts` reads.
        packages: distributions whose versions belong into a record.
        draws: its simulators need OpenGL (`sims.mujoco`), so that `ript doctor` looks whether that works.
        available: None, or what to install before a simulator can be made.
        probe: makes simulators, tries whether they behave as they should, and says what was found, in words; raises
            what is wrong. `ript doctor --suite NAME` runs it, in another process. None: there is nothing to try.
        stock: (task key, options, seed) -> the environment that its simulators stand for, which `ript bench rollout`
            times beside them; None: they stand for none.
        caveats: options -> what readers of results should know of such simulators.
        modules: name of a task -> modules that its simulator is made of, besides the suite's own.
        memory: (options, names of tasks, how many of them are loaded at a time) -> about how many bytes a process needs
            for their simulators. None: little, whatever the tasks.
    """

    name: str
    summary: str
    options: type[SimOptions]
    tasks: Callable[[], tuple[Task, ...]]
    make: SimulatorMaker
    options_of: Callable[[SimulatorSpec], SimOptions]
    spec: Callable[[Any], SimulatorSpec] | None = None
    find: Callable[[str], Task | None] = lambda name: None
    lists: Callable[[], Mapping[str, tuple[str, ...]]] = dict
    protocols: Mapping[str, SimOptions] = field(default_factory=dict)
    demonstrations: tuple[Literal["expert", "human"], ...] = ()
    converts: Callable[[ForeignDemo, Any, bool], tuple[Recording, SimulatorSpec]] | None = None
    wrote: Callable[[ForeignDemo], bool] = lambda demo: False
    packages: tuple[str, ...] = ()
    draws: bool = False
    available: Callable[[], str | None] = lambda: None
    probe: Callable[[], str] | None = None
    stock: Callable[[str, Any, int], StockEnvironment] | None = None
    caveats: Callable[[Any], Sequence[str]] = lambda options: ()
    modules: Callable[[str], Sequence[str]] = lambda name: ()
    memory: Callable[[Any, Sequence[str], int], int] | None = None

    def task(self, name: str) -> Task:
        """The task of a name, with or without the suite before it, as people write it.

        Raises:
            UnknownNameError: no such task; the nearest are suggested.
        """
        return self._task(name, {task.name: task for task in self.tasks()})

    def _task(self, name: str, known: Mapping[str, Task], lists: Iterable[str] = ()) -> Task:
        name = self._bare(name)
        found = known.get(name) or self.find(name)
        if found is None:
            raise UnknownNameError(f"{self.name} task{' or named list' if lists else ''}", name, [*known, *lists])
        return found

    def _bare(self, name: str) -> str:
        """Without the suite that may stand before it."""
        return name.removeprefix(f"{self.name}/")

    def expanded(self, names: Sequence[str]) -> tuple[Task, ...]:
        """The tasks of names, of named lists and of patterns ("*-close-*"), each once, in the order given; all of these
        with or without the suite before them.

        Raises:
            UnknownNameError: neither a task nor a list, or a pattern that no task of `tasks` has.
        """
        lists, known = self.lists(), {task.name: task for task in self.tasks()}
        parts = [part for name in names for part in lists.get(self._bare(name)) or self._matching(name) or (name,)]
        return tuple({task.key: task for task in (self._task(part, known, lists) for part in parts)}.values())

    def _matching(self, name: str) -> list[str]:
        """Names of the tasks that a pattern matches; of a name that is none, nothing."""
        if not set(name) & set("*?["):
            return []
        return fnmatch.filter([task.name for task in self.tasks()], self._bare(name))

    def lists_all(self, names: Sequence[str]) -> bool:
        """Whether each name is one of its lists, one of the tasks in `tasks`, or a pattern that some of them have."""
        listed = {*self.lists(), *(task.name for task in self.tasks())}
        return all(self._bare(name) in listed or self._matching(name) for name in names)

    def versions(self) -> dict[str, str]:
        """Distribution -> version, of those of its packages that are installed."""
        found = {}
        for package in self.packages:
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        return found


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """Files of another program that policies of a kind are read from, or written as: `ript import NAME`, `ript export
    NAME`.

    Attributes:
        name: on the command line.
        summary: what such a file is, after "read" or "write": "a published QueST checkpoint".
        suffix: of the file's name, with its dot.
        options: class of the settings that reading takes.
        read: (file, options) -> a policy, whose `simulator` is a guess where files do not tell what they were trained
            on, and what the file holds besides and was not read; None: such files are not read.
        about: (policy that was read, the settings, instructions of its suite's tasks) -> sentences to say of it.
        write: (policy, file) -> what the file does not hold of the policy, in sentences; None: such files are not
            written.
        examples: lines of help, for reading and for writing.
    """

    name: str
    summary: str
    suffix: str
    options: type[Settings]
    read: Callable[[str | Path, Any], tuple[PostTrainable, Sequence[str]]] | None = None
    about: Callable[[Any, Any, Sequence[str]], Sequence[str]] = lambda policy, options, instructions: ()
    write: Callable[[Any, str | Path], Sequence[str]] | None = None
    examples: tuple[str, str] = ("", "")


@dataclass(frozen=True, kw_only=True)
class PolicyKind:
    """Policies of one kind: `policies/NAME/kind.py` holds one as KIND. Making the record imports no torch.

    Attributes:
        kind: as in a policy folder and in `policy.kind`.
        summary: one line of what it is.
        options: class of the policy's settings, a subclass of `PolicyOptions`: sizes, density, what post-training
            updates.
        make: (options, spec, seed, size of privileged information) -> a new policy. The size is 0 where demonstrations
            have none, and None where there are no demonstrations.
        load: folder -> the policy in it, on the CPU.
        load_on: (folder, device) -> the same, straight to a device; None: it goes there from the CPU.
        require_room: (folder or None for a new policy, options, demands) -> nothing; raises `DeviceTooSmall` where such
            a policy could not do on a GPU what is demanded of it, before it is loaded.
        reads: config.json of a folder that `ript` did not write -> whether it is one of this kind, which `load` takes.
        check: options -> nothing; raises `DependencyMissing` where something is not here that such a policy needs.
        language: options -> the frozen model that such a policy reads instructions with, by its name in
            `policies.language`; "none": it reads none, or brings its own.
        prepare_untrained: (new policy, seed) -> nothing; what one without demonstrations needs before it practises.
        training: class of the settings of its supervised stages, a subclass of `TrainingOptions`; None: it has no
            supervised training, and the next six are not used.
        window: policy -> H, actions in the windows that its stages learn from; by default its `chunk`.
        begin: (new policy, options, windows) -> nothing; takes from the demonstrations what it normalises with.
        further: (loaded policy, options) -> the same, sharing its weights, with what its stages train further.
        stages: (policy, training settings, windows, keys of target tasks, fresh) -> its supervised stages, in order;
            all of a `fresh` policy, or else those that train one further.
        card: (policy, windows, fresh) -> what a model card says of the training besides; title -> word.
        bound: (policy, simulator factory, task key) -> a sentence about what its parts allow at best, or None.
        in_words: (options, training settings, finetunes) -> group -> label -> value, as a table of differences between
            configurations calls them; groups are "policy", "supervised training", "practice" and "update".
        formats: files of other programs that its policies are read from or written as.
        specimens: random policies to measure the speed of; None: `ript bench policy` cannot.
    """

    kind: str
    summary: str
    options: type[PolicyOptions]
    make: Callable[[Any, SimulatorSpec, int, int | None], PostTrainable]
    load: Callable[[str | Path], PostTrainable]
    load_on: Callable[[str | Path, str], PostTrainable] | None = None
    require_room: Callable[[str | Path | None, Any, Demands], None] = lambda folder, options, demands: None
    reads: Callable[[Mapping[str, Any]], bool] = lambda config: False
    check: Callable[[Any], None] = lambda options: None
    language: Callable[[Any], str] = lambda options: "none"
    prepare_untrained: Callable[[Any, int], None] = lambda policy, seed: None
    training: type[TrainingOptions] | None = None
    window: Callable[[Any], int] = lambda policy: policy.chunk
    begin: Callable[[Any, Any, DemoSource], None] = lambda policy, options, windows: None
    further: Callable[[Any, Any], Any] = lambda policy, options: policy
    stages: Callable[[Any, Any, DemoSource, Sequence[str], bool], Sequence[Stage]] | None = None
    card: Callable[[Any, DemoSource, bool], Mapping[str, str]] = lambda policy, windows, fresh: {}
    bound: Callable[[Any, SimulatorFactory, str], str | None] = lambda policy, factory, task: None
    in_words: Callable[[Any, Any, bool], Mapping[str, Mapping[str, str]]] = lambda options, training, finetunes: {}
    formats: tuple[CheckpointFormat, ...] = ()
    specimens: Callable[[], Specimens] | None = None
