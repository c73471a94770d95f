"""Interactive post-training for Vision-Language-Action policies.

The public names are imported when they are first used, so that `import ript` stays light.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from types import ModuleType  # not `types`: the submodule of that name would take its place
from typing import TYPE_CHECKING, Any

from ript.interpreter import load_torch_where_it_can_be

if TYPE_CHECKING:
    from ript.build import load_policy
    from ript.config import Config
    from ript.demos.collect import collect_demos
    from ript.errors import RiptError
    from ript.evaluate import evaluate
    from ript.interfaces import LikelihoodPolicy, Simulator
    from ript.learn.advantage import leave_one_out
    from ript.learn.objective import clipped_objective
    from ript.policies.quest.checkpoint import export_quest, import_quest
    from ript.policies.quest.policy import QuestPolicy
    from ript.quickstart import quickstart
    from ript.recipes import get as recipe
    from ript.report.page import write_report
    from ript.sims.check import check_simulator
    from ript.sims.registry import list_tasks, make_simulator
    from ript.train_rl import train_rl
    from ript.train_sft import train_sft
    from ript.types import EvalResult, InitialState, Observation, Rollout, Task

__version__ = version("ript")

__all__ = [
    "Config",
    "EvalResult",
    "InitialState",
    "LikelihoodPolicy",
    "Observation",
    "QuestPolicy",
    "RiptError",
    "Rollout",
    "Simulator",
    "Task",
    "check_simulator",
    "clipped_objective",
    "collect_demos",
    "evaluate",
    "export_quest",
    "import_quest",
    "leave_one_out",
    "list_tasks",
    "load_policy",
    "make_simulator",
    "quickstart",
    "recipe",
    "train_rl",
    "train_sft",
    "write_report",
]

_HOME = {
    "Config": "config",
    "EvalResult": "types",
    "InitialState": "types",
    "LikelihoodPolicy": "interfaces",
    "Observation": "types",
    "QuestPolicy": "policies.quest.policy",
    "RiptError": "errors",
    "Rollout": "types",
    "Simulator": "interfaces",
    "Task": "types",
    "check_simulator": "sims.check",
    "clipped_objective": "learn.objective",
    "collect_demos": "demos.collect",
    "evaluate": "evaluate",
    "export_quest": "policies.quest.checkpoint",
    "import_quest": "policies.quest.checkpoint",
    "leave_one_out": "learn.advantage",
    "list_tasks": "sims.registry",
    "load_policy": "build",
    "make_simulator": "sims.registry",
    "quickstart": "quickstart",
    "recipe": "recipes",
    "train_rl": "train_rl",
    "train_sft": "train_sft",
    "write_report": "report.page",
}


def __getattr__(name: str) -> Any:
    if name in ("errors", "types"):  # all of them are public: `ript.errors.ConfigError`, `ript.types.Group`
        return importlib.import_module(f"ript.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'ript' has no attribute {name!r}")
    load_torch_where_it_can_be()
    module = importlib.import_module(f"ript.{_HOME[name]}")
    value = globals()[name] = getattr(module, "get" if name == "recipe" else name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """Importing a submodule sets it as an attribute of its package. Some are named after their one public function
    (`ript.evaluate`): there the attribute is the function, whoever imported the module and when."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
