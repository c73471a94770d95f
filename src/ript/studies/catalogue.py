"""The studies of RIPT-VLA (Tan et al. 2025) by name: lists of cells, each a complete configuration.

A cell names what is pre-trained on, what is practised on and how; `run_study` does the rest. Two scales: "paper" keeps
the paper's settings, but for what it says differs; "small" is the same question shrunk to two CPU cores and hours
instead of weeks, and says what was shrunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ript.config import recipes
from ript.config.recipes import quickstart
from ript.config.sections import (
    Config,
    DemoConfig,
    EvalConfig,
    LearnConfig,
    SamplingConfig,
    policy_options,
    training_options,
)
from ript.core.errors import DependencyMissing, UnknownNameError
from ript.core.options import replace
from ript.core.registry import suites
from ript.report.tables import count
from ript.studies.notes import differences, finetunes

Scale = Literal["paper", "small"]

_LIBERO = suites.get("libero").protocols["published"]
_LIBERO_VIEWS = ("agentview_rgb", "eye_in_hand_rgb")
"""Names of the cameras in the paper's policies."""
_LISTS = suites.get("metaworld").lists()
ML45_TRAIN, ML45_TEST = _LISTS["ML45-train"], _LISTS["ML45-test"]
"""The 45 training tasks of ML45 and the five that it holds out."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row of a study's table.

    Attributes:
        name: of the row, and of its run folders.
        config: complete; `pretrain_tasks` make the base, `tasks` are practised on after fine-tuning on
            `demos.target` demonstrations each. Tasks that the base was pre-trained on are not fine-tuned.
        paper: success in %, before and after post-training, where the paper gives it.
    """

    name: str
    config: Config
    paper: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the cells that answer it.

    Attributes:
        name: see `STUDIES`.
        question: one sentence.
        expected: what the paper found.
        cells: rows of the table.
        seeds: of every cell, by default.
        scale: "small" or "paper".
        tasks_instead: small scale: other tasks than the paper's, in words.
        changed: fields that were given other values, as "field = value".
        needs: suite that must be there.
    """

    name: str
    question: str
    expected: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    scale: Scale = "small"
    tasks_instead: str = ""
    changed: tuple[str, ...] = ()
    needs: str = "metaworld"

    def on_demonstrated(self, cell: Cell) -> bool:
        """Whether the cell practises on the initial states of the base's demonstrations, as in the paper."""
        return self.scale == "paper" and not finetunes(cell.config)

    @property
    def shrunk(self) -> tuple[str, ...]:
        """What is smaller than in the paper, as the cells are now; nothing at scale "paper"."""
        if self.scale == "paper":
            return ()
        paper = STUDIES[self.name]("paper")
        fewer = f"seeds: {len(self.seeds)} instead of {len(paper.seeds)}"
        return (
            *differences(self.cells[0].config, paper.cells[0].config),
            *([fewer] if len(self.seeds) < len(paper.seeds) else []),
            *([self.tasks_instead] if self.tasks_instead else []),
        )

    @property
    def differs(self) -> tuple[str, ...]:
        """What is not as in the paper for other reasons."""
        config = self.cells[0].config
        seeds = SEEDS.format("target demonstrations, fine-tuning and practice" if finetunes(config) else "practice")
        always = (ADAPTED, seeds) if self.needs == "libero" else (seeds,)
        if self.scale == "small":
            return always
        few = FEW_SHOT_DIFFERS if finetunes(config) else ()
        together = f"one policy practises on all tasks, with {config.sampling.groups} contexts an iteration in all"
        exact = (EXACT,) if config.policy.sampling == "exact" else ()
        return (*exact, ONE_GPU, *few, *((together,) if few and self.name not in PAIRS else ()), *always)


def get_study(name: str, scale: Scale = "small") -> Study:
    """The study of that name.

    Raises:
        UnknownNameError: no such study or scale.
    """
    if name not in STUDIES:
        raise UnknownNameError("study", name, STUDIES)
    if scale not in ("paper", "small"):
        raise UnknownNameError("scale", scale, ("paper", "small"))
    return STUDIES[name](scale)


# ------------------------------------------------------------------ Meta-World


PAPER_SEEDS, SMALL_SEEDS = (0, 1, 2), (0,)

EXACT = (
    "what is drawn from, the five likeliest tokens, is also what is optimised, not the softmax over all "
    "(--policy.sampling=published does that)"
)
"""This and the sentences that follow say in what a study of scale "paper" differs from the paper."""
ONE_GPU = "minibatches are of 8 trajectories in all, not on each of several GPUs"
FEW_SHOT_DIFFERS = (
    "contexts are states that the simulator draws as it draws the demonstrations', but others",
    "the few-shot stage's loss of the action decoder has LIBERO's weight, 10, everywhere",
)
ADAPTED = "demonstrations are one person's of each task, adapted to other initial states, not fifty recorded ones"
SEEDS = "seeds share the base, its demonstrations and the test states; each has its own {}"


def paper_metaworld(tasks: tuple[str, ...], *, multitask: bool) -> Config:
    """The paper's settings for QueST on Meta-World: 10 contexts an iteration for each of few tasks, 180 for many.

    Those of many are the initial states of all demonstrations (`Study.on_demonstrated`).
    """
    return Config(
        recipe="paper-metaworld",
        tasks=tasks,
        pretrain_tasks=ML45_TRAIN,
        iterations=30 if multitask else 15,
        stop_at=1.0,
        sim=suites.get("metaworld").protocols["published"],
        policy=policy_options(
            "quest", size="paper", language="clip", standardise=False, temperature=1.0, top_k=5, rl_trains="prior"
        ),
        demos=DemoConfig(per_task=100, target=5, noise=0.2, every=1),
        sft=training_options(
            "quest",
            autoencoder_epochs=100,
            autoencoder_batch=256,
            autoencoder_learning_rate=1e-4,
            policy_epochs=20,
            policy_batch=128,
            policy_learning_rate=1e-4,
            finetune_epochs=200,
            finetune_learning_rate=1e-4,
            finetune_share=1.0,
            finetune_decoder=10.0,
            weight_decay=1e-4,
            max_grad_norm=100.0,
            warmup=0.0,
            colour_jitter=0.3,
            noisy_targets=True,
            checkpoint_every=2_000,
        ),
        sampling=SamplingConfig(
            group_size=16,
            groups=180 if multitask else 10 * len(tasks),
            max_attempts=360 if multitask else 40 * len(tasks),
            states=0 if multitask else 50,
        ),
        learn=LearnConfig(
            learning_rate=1e-6,
            epochs=20,
            minibatch_trajectories=8,
            clip_low=0.2,
            clip_high=0.2,
            reduction="token",
            target_kl=0.0,
            adapt_kl=0.0,
            weight_decay=1e-4,
        ),
        eval=EvalConfig(trials=50, every=5, every_trials=10, mode="sampled", videos=1),
    )


def small_metaworld(tasks: tuple[str, ...]) -> Config:
    """The quickstart's policy, pre-trained on ML45."""
    base = quickstart()
    return replace(
        base,
        recipe="small-metaworld",
        tasks=tasks,
        pretrain_tasks=ML45_TRAIN,
        iterations=8,
        stop_at=1.0,
        demos=DemoConfig(per_task=10, target=5),
        sft=replace(base.sft, finetune_steps=300, finetune_share=0.5),
        sampling=replace(base.sampling, groups=24, max_attempts=32),
        eval=EvalConfig(trials=20, every=0, mode="greedy", videos=1),
    )


def few_shot(scale: Scale) -> Config:
    """The five held-out tasks, five demonstrations each."""
    return paper_metaworld(ML45_TEST, multitask=False) if scale == "paper" else small_metaworld(ML45_TEST)


def _study(scale: Scale, cells: list[Cell], **settings: Any) -> Study:
    small = scale == "small"
    return Study(
        cells=tuple(cells),
        seeds=SMALL_SEEDS if small else PAPER_SEEDS,
        scale=scale,
        **settings,
    )


def metaworld_ml45(scale: Scale) -> Study:
    tasks = ML45_TRAIN
    if scale == "paper":
        config = paper_metaworld(tasks, multitask=True)
    else:
        config = small_metaworld(tasks)
        config = replace(
            config,
            iterations=6,
            sampling=replace(config.sampling, groups=90, max_attempts=135),
            learn=replace(config.learn, minibatch=1024),
            eval=replace(config.eval, trials=10, videos=0),
        )
    return _study(
        scale,
        [Cell(name="ML45", config=config, paper=(91.0, 92.2))],
        name="metaworld_ml45",
        question="Does post-training on all 45 training tasks at once raise their mean success?",
        expected="a little: 91.0 -> 92.2",
    )


def metaworld_ml45_fewshot(scale: Scale) -> Study:
    return _study(
        scale,
        [Cell(name="5 demonstrations", config=few_shot(scale), paper=(63.6, 76.0))],
        name="metaworld_ml45_fewshot",
        question="How much does post-training add on five new tasks with five demonstrations each?",
        expected="63.6 -> 76.0",
    )


def demos(scale: Scale) -> Study:
    config = few_shot(scale)
    if scale == "small":  # a fixed number of steps would fine-tune many demonstrations less than few
        config = replace(config, sft=replace(config.sft, finetune_epochs=40))
    return _study(
        scale,
        [
            Cell(name=count(n, "demonstration"), config=replace(config, demos=replace(config.demos, target=n)))
            for n in (1, 3, 5, 10)
        ],
        name="demos",
        question="How does the gain depend on the number of demonstrations?",
        expected="post-training gains most with fewest demonstrations",
    )


def context_size(scale: Scale) -> Study:
    config = few_shot(scale)
    return _study(
        scale,
        [Cell(name=count(n, "context"), config=_sampling(config, states=n)) for n in (1, 5, 10, 25, 40)],
        name="context_size",
        question="How many initial states are needed to practise on?",
        expected="success rises with the number of contexts",
    )


def context_noise(scale: Scale) -> Study:
    config = _sampling(few_shot(scale), states=40)
    return _study(
        scale,
        [
            Cell(name=f"{100 * std:g} cm", config=_sampling(config, state_noise=std))
            for std in (0.0, 0.025, 0.05, 0.1, 0.175)
        ],
        name="context_noise",
        question="What if the practised initial states are not the ones that are measured?",
        expected="no loss at 2.5 cm, still above SFT at 17.5 cm",
    )


def dynamic_sampling(scale: Scale) -> Study:
    small = scale == "small"
    config = few_shot(scale) if small else paper_metaworld(ML45_TRAIN, multitask=True)
    study = _study(
        scale,
        [
            Cell(name="on", config=config, paper=(None, None if small else 92.2)),
            Cell(name="off", config=_sampling(config, dynamic=False), paper=(None, None if small else 91.3)),
        ],
        name="dynamic_sampling",
        question="What is dynamic rollout sampling worth?",
        expected="on ML45 92.2 with it, 91.3 without",
    )
    return replace(study, tasks_instead="the five held-out tasks instead of ML45's 45") if small else study


def rollouts_per_context(scale: Scale) -> Study:
    config = few_shot(scale)
    s = config.sampling

    def with_k(k: int) -> Config:  # the same number of rollouts
        return _sampling(
            config, group_size=k, groups=s.groups * s.group_size // k, max_attempts=s.max_attempts * s.group_size // k
        )

    return _study(
        scale,
        [Cell(name=f"K = {k}", config=with_k(k)) for k in (4, 8, 16)],
        name="rollouts_per_context",
        question="How many rollouts from each initial state, at equal numbers of rollouts?",
        expected="more rollouts per context give steadier gains",
    )


def std_normalisation(scale: Scale) -> Study:
    config = few_shot(scale)
    return _study(
        scale,
        [
            Cell(name="off", config=config),
            Cell(name="on", config=replace(config, learn=replace(config.learn, normalise_std=True))),
        ],
        name="std_normalisation",
        question="Should advantages be divided by their standard deviation?",
        expected="no (LOOP: 71.3 without, 61.9 with)",
    )


def _sampling(config: Config, **changes: Any) -> Config:
    return replace(config, sampling=replace(config.sampling, **changes))


# ------------------------------------------------------------------ LIBERO


# Tasks are named lists that the LIBERO simulator brings: its suites.

PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "cross_scenario": (("libero_90/20", "libero_90/44"), ("libero_90/9", "libero_90/30")),
    "cross_goal": (("libero_90/9", "libero_90/10"), ("libero_90/50", "libero_90/52")),
}
"""Transfer study -> (task of the base, task practised on). The same goal in two scenes: turn on the stove, put the bowl
on the plate. Two goals in one scene: the bowl on the plate or on the cabinet, the soup or the milk in the basket."""


def paper_libero(
    tasks: str, pretrain: str, *, per_task: int = 50, target: int = 5, policy_epochs: int = 200, single: bool = False
) -> Config:
    """The paper's settings for QueST on LIBERO.

    Args:
        tasks: named list of the tasks practised on, or one task.
        pretrain: the same of what the base learns from; tasks that are among `tasks` are not fine-tuned.
        per_task: demonstrations of each pre-training task.
        target: demonstrations of each task that is fine-tuned.
        policy_epochs: of the prior's pre-training: 20 on LIBERO-90, 200 on the suites.
        single: one task: 10 contexts an iteration instead of 180.
    """
    config = paper_metaworld((tasks,), multitask=not single)
    return replace(
        config,
        recipe=f"paper-{tasks}",
        iterations=15 if single else 30,
        pretrain_tasks=(pretrain,),
        sim=replace(
            _LIBERO, cameras=tuple(f"{name}={view}" for name, view in zip(_LIBERO_VIEWS, _LIBERO.cameras, strict=True))
        ),
        demos=replace(config.demos, per_task=per_task, target=target, source="expert"),
        sft=replace(config.sft, policy_epochs=policy_epochs),
        sampling=replace(config.sampling, states=0 if tasks == pretrain else 50),
    )


def small_libero(config: Config) -> Config:
    """The same question for the policy of the recipe `libero`; a target's one demonstration is a person's."""
    base = recipes.get("libero")
    one = "/" in config.tasks[0]  # a task, not a suite of them
    return replace(
        base,
        recipe=f"small-{config.tasks[0]}",
        tasks=config.tasks,
        pretrain_tasks=config.pretrain_tasks,
        stop_at=1.0,
        sim=replace(base.sim, horizon=config.sim.horizon),
        demos=replace(
            base.demos, target=config.demos.target, target_source="human" if config.demos.target == 1 else "same"
        ),
        sft=replace(base.sft, finetune_steps=800, finetune_share=0.6, finetune_decoder=10.0),
        sampling=base.sampling if one else replace(base.sampling, groups=40, max_attempts=60),
        eval=replace(base.eval, trials=50 if one else 20, videos=1),
    )


def _libero(
    name: str, question: str, rows: dict[str, tuple[Config, tuple[float | None, float | None]]]
) -> Callable[[Scale], Study]:
    def study(scale: Scale) -> Study:
        cells = [
            Cell(name=cell, config=config if scale == "paper" else small_libero(config), paper=paper)
            for cell, (config, paper) in rows.items()
        ]
        return _study(scale, cells, name=name, question=question, expected="see the table", needs="libero")

    return study


def _libero_suite(suite: str, paper: tuple[float, float], **settings: Any) -> Callable[[Scale], Study]:
    name = f"libero_{suite}"
    config = paper_libero(name, name, **settings)
    return _libero(
        name, f"Post-training on all tasks of LIBERO-{suite}, 50 demonstrations each.", {suite: (config, paper)}
    )


def _libero_pairs(
    name: str, question: str, rows: dict[int, tuple[float | None, float | None]]
) -> Callable[[Scale], Study]:
    """A cell for each number of demonstrations and each pair; the paper's numbers are means over its pairs."""
    return _libero(
        name,
        question,
        {
            f"{count(n, 'demonstration')}, {before} to {after}": (
                paper_libero(after, before, target=n, single=True),
                paper,
            )
            for n, paper in rows.items()
            for before, after in PAIRS[name]
        },
    )


STUDIES: dict[str, Callable[[Scale], Study]] = {
    "metaworld_ml45": metaworld_ml45,
    "metaworld_ml45_fewshot": metaworld_ml45_fewshot,
    "demos": demos,
    "context_size": context_size,
    "context_noise": context_noise,
    "dynamic_sampling": dynamic_sampling,
    "rollouts_per_context": rollouts_per_context,
    "std_normalisation": std_normalisation,
    "libero_goal": _libero_suite("goal", (80.8, 92.7)),
    "libero_spatial": _libero_suite("spatial", (87.4, 95.6)),
    "libero_object": _libero_suite("object", (93.6, 98.4)),
    "libero_long": _libero_suite("long", (68.8, 87.5)),
    "libero_90": _libero_suite("90", (88.6, 94.3), policy_epochs=20),
    "libero_long_fewshot": _libero(
        "libero_long_fewshot",
        "Post-training on LIBERO-long after five demonstrations of each task.",
        {"5 demonstrations": (paper_libero("libero_long", "libero_90", policy_epochs=20), (50.2, 71.4))},
    ),
    "cross_scenario": _libero_pairs(
        "cross_scenario",
        "The same goal in another scene, after few demonstrations.",
        {1: (5.0, None), 3: (None, None), 5: (None, None)},  # the best pair of 1: 3.5 -> 97.2
    ),
    "cross_goal": _libero_pairs(
        "cross_goal",
        "Another goal in the same scene, after few demonstrations.",
        {3: (0.7, 59.7), 10: (29.4, 79.7)},
    ),
}
"""Name -> what makes the study at a scale."""


def with_simulator(study: Study) -> Study:
    """The study, when its simulator is there.

    Raises:
        DependencyMissing: it is not.
    """
    if missing := suites.get(study.needs).available():
        raise DependencyMissing(f"study {study.name} needs the simulator suite {study.needs!r}: {missing}")
    return study
