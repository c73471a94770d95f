"""Named recipes: functions that return a complete, frozen configuration. Add one by writing a function here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ript.config.sections import (
    Config,
    DemoConfig,
    EvalConfig,
    LearnConfig,
    RolloutConfig,
    SamplingConfig,
    policy_options,
    sim_options,
    training_options,
)
from ript.core.errors import ConfigError, UnknownNameError
from ript.core.options import replace
from ript.core.registry import suites

RECIPES: dict[str, Callable[[], Config]] = {}
"""Name -> what makes the configuration."""

ABOUT: dict[str, str] = {}
"""Name -> one sentence."""

Following = Callable[[str, tuple[str, ...]], tuple[str, ...]]

FOLLOWING: dict[str, Following] = {}
"""Name of a recipe whose `pretrain_tasks` follow its targets -> (suite, tasks) -> what to pre-train on for them."""


def recipe(about: str, *, following: Following | None = None) -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    """Makes a function a recipe of its name; see `FOLLOWING` for one whose tasks of pre-training follow its targets."""

    def add(make: Callable[[], Config]) -> Callable[[], Config]:
        RECIPES[make.__name__], ABOUT[make.__name__] = make, about
        if following is not None:
            FOLLOWING[make.__name__] = following
        return make

    return add


def akin(suite: str, tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The other tasks of the shortest of the suite's lists that each of these tasks, or those of named lists, is on."""
    record = suites.get(suite)
    targets = [task.name for task in record.expanded(tasks)]
    found: dict[str, None] = {}
    for target in targets:
        holding = sorted((names for names in record.lists().values() if target in names), key=len)
        found |= dict.fromkeys(holding[0] if holding else ())
    return tuple(name for name in found if name not in targets)


PRETRAIN_TASKS = tuple(
    f"{name}-v3"
    for name in (
        "button-press",
        "button-press-topdown-wall",
        "coffee-pull",
        "coffee-push",
        "door-lock",
        "door-open",
        "drawer-close",
        "faucet-close",
        "handle-press-side",
        "handle-pull",
        "pick-place",
        "plate-slide-back",
        "plate-slide-side",
        "push",
        "reach-wall",
        "soccer",
        "sweep-into",
        "window-close",
    )
)
"""What the quickstart's base policy learns from: 18 Meta-World tasks."""

TARGET_TASKS = tuple(
    f"{name}-v3"
    for name in (
        "drawer-open",
        "button-press-topdown",
        "handle-press",
        "coffee-button",
        "plate-slide",
        "faucet-open",
        "window-open",
        "reach",
        "door-unlock",
        "dial-turn",
        "lever-pull",
        "peg-unplug-side",
    )
)
"""Targets of the results table, none of them among `PRETRAIN_TASKS`; those not in `TUNED_ON` were written down before
any of them was run."""

TUNED_ON = TARGET_TASKS[:2]
"""Targets on which the settings of `quickstart` were chosen: means are given without them."""


@recipe("One demonstration of a new task, then interactive post-training; Meta-World on two CPU cores, in minutes.")
def quickstart() -> Config:
    return Config(
        recipe="quickstart",
        tasks=("faucet-open-v3",),
        pretrain_tasks=PRETRAIN_TASKS,
        sim=sim_options("metaworld"),
        policy=policy_options("quest", size="small", privileged=True, entropy=0.8, top_k=16, rl_trains="prior+adapter"),
        sft=training_options(
            "quest",
            autoencoder_steps=1000,
            autoencoder_learning_rate=2e-3,
            policy_steps=1300,
            finetune_steps=100,
            finetune_share=0.3,
        ),
        sampling=SamplingConfig(group_size=16, groups=36, max_attempts=48, horizon=200, horizon_margin=1.5),
        learn=LearnConfig(learning_rate=2e-4, epochs=4, adapt_kl=0.4, target_kl=1.2),  # four tokens
        eval=EvalConfig(mode="greedy"),
        stop_at=0.95,
    )


@recipe("One policy on eight new tasks at once, five demonstrations each.")
def multitask() -> Config:
    base = quickstart()
    return replace(
        base,
        recipe="multitask",
        tasks=TARGET_TASKS[:8],
        demos=replace(base.demos, target=5),
        sft=replace(base.sft, finetune_steps=400),
        sampling=replace(base.sampling, groups=48, max_attempts=64),
        learn=replace(base.learn, minibatch=1024),
        eval=replace(base.eval, trials=50, every_trials=10, videos=1),
        stop_at=1.0,
    )


@recipe("A tiny policy from the seed learns 2-D reaching from pictures in under a minute; nothing else is needed.")
def smoke() -> Config:
    return Config(
        recipe="smoke",
        tasks=("reach",),
        iterations=4,
        sim=sim_options("toy", image_size=16, horizon=24),
        policy=policy_options("quest", size="tiny", rl_trains="prior+encoders"),
        demos=DemoConfig(per_task=4, every=1),
        sft=training_options("quest", autoencoder_steps=50, policy_steps=50, finetune_steps=20, threads=1),
        rollout=RolloutConfig(workers=0, slots=64),
        sampling=SamplingConfig(group_size=16, groups=64, max_attempts=64),
        learn=LearnConfig(
            learning_rate=3e-3, epochs=6, minibatch=256, micro_batch=256, adapt_kl=0.2, target_kl=0.6, threads=1
        ),  # two tokens
        eval=EvalConfig(mode="greedy", trials=50, every=2, every_trials=20, videos=1),
    )


@recipe("OpenVLA-OFT at a size for two cores: one demonstration of a new task, then practice; Meta-World.")
def openvla_oft_small() -> Config:
    return Config(
        recipe="openvla_oft_small",
        tasks=("drawer-open-v3",),
        pretrain_tasks=PRETRAIN_TASKS,
        sim=sim_options("metaworld"),
        policy=policy_options("openvla_oft", size="small", temperature=3.5, rl_trains="head"),
        sft=training_options(
            "openvla_oft",
            policy_steps=2500,
            policy_learning_rate=7e-4,
            finetune_steps=100,
            finetune_share=0.3,
            scale_steps=200,
        ),
        sampling=SamplingConfig(group_size=8, groups=48, max_attempts=56, horizon=160),
        learn=LearnConfig(learning_rate=4e-4, epochs=6, minibatch=1024, micro_batch=1024, adapt_kl=0.1, target_kl=1.0),
        eval=EvalConfig(mode="greedy"),
        stop_at=0.95,
    )


@recipe(
    "One human demonstration of a LIBERO task, a base of the other tasks of its suite, then practice.", following=akin
)
def libero() -> Config:
    return Config(
        recipe="libero",
        tasks=("libero_object/4",),
        pretrain_tasks=akin("libero", ("libero_object/4",)),
        sim=sim_options("libero", image_size=64),
        policy=policy_options("quest", size="small", privileged=True, entropy=0.8, top_k=16, rl_trains="prior+adapter"),
        demos=DemoConfig(source="expert", target_source="human", noise=0.2),
        sft=training_options(
            "quest",
            autoencoder_steps=1500,
            autoencoder_learning_rate=2e-3,
            policy_steps=2000,
            finetune_steps=100,
            finetune_share=0.3,
        ),
        sampling=SamplingConfig(group_size=8, groups=12, max_attempts=18, horizon=240, horizon_margin=1.5),
        learn=LearnConfig(learning_rate=2e-4, epochs=4, adapt_kl=0.4, target_kl=1.2),  # four tokens
        eval=EvalConfig(mode="greedy", trials=50, every_trials=20, videos=2),
        stop_at=0.95,
    )


@recipe("An environment and a policy of your own: few demonstrations, then practice until the rollouts succeed.")
def practice() -> Config:
    return Config(
        recipe="practice",
        iterations=40,
        sim=sim_options("gym"),
        policy=policy_options("gaussian"),
        demos=DemoConfig(per_task=25, target=25, every=1),
        sampling=SamplingConfig(group_size=16, groups=24, max_attempts=48, horizon_margin=1.5),
        learn=LearnConfig(learning_rate=3e-4, epochs=3, minibatch=256, micro_batch=256, adapt_kl=0.2, target_kl=0.5),
        eval=EvalConfig(mode="greedy"),
        stop_at=0.95,
    )


OPENVLA_SUITES = ("goal", "spatial", "object", "long")
"""LIBERO's suites as RIPT-VLA names them; "long" is libero_10."""


def openvla_oft_libero(suite: str, *, exact: bool) -> Config:
    """Post-training of a published 7 B policy on the ten tasks of a suite, on one GPU.

    With RIPT-VLA's settings: eight rollouts from each of 24 states, one epoch, ratios cut at 0.1, 12 iterations; it
    draws by another scale than it scores with, and computes what comes before the last word without gradient. Exact:
    one density, as wide as the scale head says (on LIBERO wider ones fail too often, docs/results.md), the forward pass
    that checkpoints were trained for, and limits of ratios and KL found on `openvla_oft_small`. Its rates are
    RIPT-VLA's: those found there are of the head alone, or of an adapter in a network of 1.6 million numbers.
    """
    tasks = "libero_10" if suite == "long" else f"libero_{suite}"
    density = {"temperature": 2.0 if suite == "spatial" else 5.0, "sampling": "published", "forward": "two_pass"}
    learn = LearnConfig(
        learning_rate=1e-4,
        epochs=1,
        minibatch_trajectories=16,  # four on each of four GPUs
        micro_batch=8,
        clip_low=0.1,
        clip_high=0.1,
        reduction="token",
        target_kl=0.0,
        adapt_kl=0.0,
    )
    return Config(
        recipe=f"openvla_oft_libero_{suite}{'_exact' if exact else ''}",
        tasks=(tasks,),
        iterations=12,
        device="cuda",
        sim=suites.get("libero").protocols[tasks.replace("libero_", "openvla-")],
        policy=policy_options(
            "openvla_oft", recompute=True, head_rate=1e-5, **({"temperature": 1.0} if exact else density)
        ),
        demos=DemoConfig(target=5),
        sft=training_options(
            "openvla_oft", finetune_steps=2000, finetune_learning_rate=5e-4, scale_steps=1000, micro_batch=8
        ),
        rollout=RolloutConfig(workers=12, slots=8, inference="central"),
        sampling=SamplingConfig(group_size=8, groups=24, max_attempts=48),
        learn=replace(learn, clip_low=0.2, clip_high=0.2, target_kl=0.7, adapt_kl=0.18) if exact else learn,
        eval=EvalConfig(mode="greedy", trials=50, every=4, every_trials=5, videos=1),
    )


for _suite in OPENVLA_SUITES:
    for _exact in (False, True):
        _made = partial(openvla_oft_libero, _suite, exact=_exact)
        _name = f"openvla_oft_libero_{_suite}{'_exact' if _exact else ''}"
        RECIPES[_name] = _made
        ABOUT[_name] = f"OpenVLA-OFT (7 B) on LIBERO-{_suite.capitalize()}, all ten tasks, one GPU: " + (
            "one density for drawing and scoring." if _exact else "RIPT-VLA's settings, as published."
        )


def get(name: str) -> Config:
    """The recipe's configuration.

    Raises:
        UnknownNameError: no such recipe.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a recipe is called by its name, such as 'smoke', got {name!r}")
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return RECIPES[name]()


def with_tasks(config: Config, tasks: tuple[str, ...]) -> Config:
    """The same recipe for other target tasks; a target, however it is written, is never pre-trained on.

    Where the recipe pre-trains on tasks akin to its target, and no others were given, these follow the target.
    """
    pretrain, follow = config.pretrain_tasks, FOLLOWING.get(config.recipe)
    if follow is not None and pretrain == follow(config.sim.suite, config.tasks):
        pretrain = follow(config.sim.suite, tasks)
    targets = {_bare(task, config.sim.suite) for task in tasks}
    kept = tuple(task for task in pretrain if _bare(task, config.sim.suite) not in targets)
    return replace(config, tasks=tasks, pretrain_tasks=kept)


def _bare(task: str, suite: str) -> str:
    """The name without suite and version: "metaworld/push-v3" and "push" are one task."""
    return task.removeprefix(f"{suite}/").removesuffix("-v3")
