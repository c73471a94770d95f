"""Interactive post-training for Vision-Language-Action policies.

The public names are imported when they are first used, so that `import ript` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ript.core.interpreter import load_torch_where_it_can_be
from ript.core.version import VERSION

if TYPE_CHECKING:
    from ript.config.recipes import get as recipe
    from ript.config.sections import Config
    from ript.core.errors import RiptError
    from ript.core.interfaces import LikelihoodPolicy, Simulator
    from ript.core.types import EvalResult, InitialState, Observation, Rollout, Task
    from ript.demos.collect import collect_demos
    from ript.evaluation import evaluate
    from ript.learn.advantage import leave_one_out
    from ript.learn.objective import clipped_objective
    from ript.policies.loading import load_policy
    from ript.policies.quest.checkpoint import export_quest, import_quest
    from ript.policies.quest.policy import QuestPolicy
    from ript.report.page import write_report
    from ript.rl import train_rl
    from ript.sft import train_sft
    from ript.sims.check import check_simulator
    from ript.sims.registry import list_tasks, make_simulator
    from ript.studies.quickstart import quickstart

__version__ = VERSION

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
    "Config": "config.sections",
    "EvalResult": "core.types",
    "InitialState": "core.types",
    "LikelihoodPolicy": "core.interfaces",
    "Observation": "core.types",
    "QuestPolicy": "policies.quest.policy",
    "RiptError": "core.errors",
    "Rollout": "core.types",
    "Simulator": "core.interfaces",
    "Task": "core.types",
    "check_simulator": "sims.check",
    "clipped_objective": "learn.objective",
    "collect_demos": "demos.collect",
    "evaluate": "evaluation",
    "export_quest": "policies.quest.checkpoint",
    "import_quest": "policies.quest.checkpoint",
    "leave_one_out": "learn.advantage",
    "list_tasks": "sims.registry",
    "load_policy": "policies.loading",
    "make_simulator": "sims.registry",
    "quickstart": "studies.quickstart",
    "recipe": "config.recipes",
    "train_rl": "rl",
    "train_sft": "sft",
    "write_report": "report.page",
}

_PUBLIC = ("errors", "types")
"""Public modules that are imported when they are first used, too: `ript.errors.ConfigError`."""


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return importlib.import_module(f"ript.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'ript' has no attribute {name!r}")
    load_torch_where_it_can_be()
    module = importlib.import_module(f"ript.{_HOME[name]}")
    value = globals()[name] = getattr(module, "get" if name == "recipe" else name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
