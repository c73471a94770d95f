"""The report page: right numbers, nothing from outside, and a word about what is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from disks import as_ordinary_user, open_to_all
from synthetic_run import evaluation, make_run, moving_square

from ript.core.errors import ConfigError, RunError
from ript.core.options import replace
from ript.core.types import EvalResult, TaskResult
from ript.report import views
from ript.report.curves import RUN_COLORS
from ript.report.page import write_report
from ript.report.read import read_run
from ript.report.views import flatten
from ript.run.collecting import of_nodes
from ript.run.folder import RunFolder


class Text(HTMLParser):
    """Collects what a reader sees, and checks that elements are closed in order."""

    VOID = frozenset({"meta", "link", "br", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


def text_of(page: str) -> str:
    parser = Text()
    parser.feed(page)
    assert parser.open == []
    return " ".join(" ".join(parser.words).split())


def report(tmp_path, *folders, **options) -> tuple[str, str]:
    page = write_report(folders, tmp_path / "report.html", **options).read_text()
    return page, text_of(page)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "quick" / "rl", iterations=6)


def result(successes: int, outcomes: list[tuple[str, str]] | None = None, mode: str = "greedy") -> EvalResult:
    row = TaskResult(
        successes=successes, trials=100, errors=2, interval=(successes / 100 - 0.05, successes / 100 + 0.05)
    )
    return EvalResult(policy="p", seed=0, mode=mode, tasks={"t": row}, total=row, per_state={"t": outcomes or []})


def test_the_headline_gives_before_and_after_with_intervals_in_both_modes(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log_eval(0, result(12))
        run.log_eval(0, result(10, mode="sampled (temperature 0.6)"))
        run.log(1, {"total/rollouts": 480, "total/env_steps": 61200, "total/seconds": 312})
        run.log_eval(1, result(97), rollouts=480, env_steps=61200, seconds=312)
        run.log_eval(1, result(91, mode="sampled (temperature 0.6)"))
        for iteration, successes in ((0, 11), (1, 99)):
            run.log_eval(iteration, result(successes), states="validation")
        run.finish("all done")
    _, text = report(tmp_path, run.path)
    assert "Validation success" not in text  # it chose the policy
    assert "Test success, greedy 12 % → 97 % 7–17 % 12 of 100, 2 errors apart 92–102 % 97 of 100" in text
    assert "Test success, sampled (temperature 0.6) 10 % → 91 %" in text
    assert "After 1 iteration (480 rollouts, 5 min 12 s) the policy solves 97 of 100" in text
    assert "61,200 environment steps" in text
    assert "overlap" not in text


def outcomes(successes: int, errors: int = 0, first: int = 0) -> list[tuple[str, str]]:
    """100 states of which so many are solved, from number `first` on; the last few are errors."""
    solved = range(first, first + successes)
    words = ["success" if i in solved else "failure" for i in range(100 - errors)] + ["error"] * errors
    return [(f"state{i}", word) for i, word in enumerate(words)]


def test_a_gain_is_judged_by_the_states_that_changed_not_by_two_intervals(tmp_path):
    """48 and 60 of 100: the intervals overlap, but no state was lost."""
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log_eval(0, result(48, outcomes(48)))
        run.log_eval(1, result(60, outcomes(60)))
    _, text = report(tmp_path, run.path)
    assert "+12 points on the same states (paired +5 to +18): 12 gained, 0 lost of 100; p < 0.001" in text
    assert "may be chance" not in text


def test_a_gain_that_may_be_chance_is_not_told_without_saying_so(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log_eval(0, result(48, outcomes(48)))
        run.log_eval(1, result(53, outcomes(53, first=30)))
    _, text = report(tmp_path, run.path)
    assert "(paired -11 to +20): 35 gained, 30 lost of 100; p = 0.620" in text
    assert "That may be chance: the paired 95 % interval of the difference is -11 to +20 points." in text


def test_states_with_an_error_are_left_out_of_the_pairs(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log_eval(0, result(48, outcomes(48, errors=3)))
        run.log_eval(1, result(60, outcomes(60)))
    assert "12 gained, 0 lost of 97, 3 left out; p < 0.001" in report(tmp_path, run.path)[1]


def test_without_the_outcome_of_each_state_nothing_is_said_of_chance(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log_eval(0, result(50))
        run.log_eval(1, result(55))
    _, text = report(tmp_path, run.path)
    assert "Which states were solved is not known" in text and "points on the same states" not in text


def seed_run(
    path, before: int, after: int, *, start=None, revision=None, content=(), finished=True, **settings
) -> Path:
    """A run that solved so many test states before and after, from the policy in `start`."""
    began = {"start": None if start is None else str(start)} | ({"start_revision": revision} if revision else {})
    began |= dict(content)
    with RunFolder.create(path, {"recipe_config": settings, **began}) as made:
        made.log_eval(0, result(before, outcomes(before)))
        made.log_eval(1, result(after, outcomes(after)))
        if finished:
            made.finish("all iterations done")
    return made.path


def trained(path, seed: int, **settings) -> Path:
    """The policy of a run of supervised training."""
    asked = {"recipe_config": {"seed": seed, **settings}, "demos": [str(path.parent / "target.hdf5")], "base": "/base"}
    with RunFolder.create(path, asked, "sft"):
        return path / "policy"


def begun(run: Path, seed: int, demos: int = 1) -> Path:
    """Let a run have kept the policy that it began with."""
    (run / "start").mkdir()
    card = {"supervised training": {"seed": seed, "demonstrations": demos}}
    (run / "start" / "config.json").write_text(json.dumps({"card": card}))
    return run


def test_a_success_rate_says_within_how_many_steps_and_on_which_states_and_runs_apart_are_named(tmp_path):
    runs = []
    ways = {"a": {}, "b": {}, "c": {"horizon": {"t": 12}}, "d": {"seed": 5, "state_noise": 0.02}}
    for name, how in ways.items():
        with RunFolder.create(tmp_path / name, {}) as run:
            for iteration, solved in ((0, 48), (1, 60)):
                run.log_eval(iteration, replace(result(solved), **{"horizon": {"t": 24}} | how))
        runs.append(run.path)
    (_, one), (_, alike), (_, apart) = (report(tmp_path, *some) for some in (runs[2:3], runs[:2], runs))
    assert "Within 12 steps, states of seed 0, t" in one
    assert "within 24 steps, states of seed 0, t" in alike and "not measured alike" not in alike
    assert (
        "These runs were not measured alike, so their success rates are other quantities: test success within 24 "
        "steps, states of seed 0, t, or within 12 steps, states of seed 0, t, or within 24 steps, states of seed 5, "
        "objects moved by 2 cm, t."
    ) in apart


def test_success_in_other_tasks_is_not_measured_alike(tmp_path):
    runs = []
    for names in ("abcd", "abce", "a"):
        with RunFolder.create(tmp_path / names, {}) as run:
            found = result(1)
            tasks = dict.fromkeys(names, found.total)
            run.log_eval(0, replace(found, tasks=tasks, horizon=dict.fromkeys(names, 24)))
        runs.append(run.path)
    assert (
        "measured alike, so their success rates are other quantities: test success within 24 steps, states of seed 0, "
        "4 tasks from a to d, or within 24 steps, states of seed 0, 4 tasks from a to e, or within 24 steps, states "
        "of seed 0, a."
    ) in report(tmp_path, *runs)[1]


def together(tmp_path, *runs) -> str:
    return report(tmp_path, *runs)[1].partition("Runs that differ in the seed alone, together")[2]


def test_runs_that_differ_in_the_seed_alone_are_told_together_over_seeds_and_states(tmp_path):
    runs = [
        seed_run(tmp_path / "a", 7, 30, seed=0, rate=1),
        seed_run(tmp_path / "b", 2, 17, seed=1, rate=1),
        seed_run(tmp_path / "c", 7, 40, seed=0, rate=2),
    ]
    found = together(tmp_path, *runs)
    assert "a, b greedy 5 % 7, 2 0–37 % 24 % 30, 17 0–100 % +19 +23, +15 -32 to +70" in found
    assert "over seeds and states" in found and " c " not in found.partition("Mean over seeds")[0]
    assert not together(tmp_path, runs[0], runs[2])


def test_validation_which_chose_the_policies_is_not_told_over_seeds_beside_the_test(tmp_path):
    runs = [seed_run(tmp_path / name, 7, 30, seed=seed) for seed, name in enumerate("ab")]
    for path in runs:
        with RunFolder.open(path) as run:
            for iteration, solved in ((0, 7), (1, 95)):
                run.log_eval(iteration, result(solved, outcomes(solved)), states="validation")
    found = together(tmp_path, *runs).partition("Mean over seeds")[0]
    assert "a, b greedy" in found and "validation" not in found


def test_one_seed_that_is_there_several_times_is_one_measurement(tmp_path):
    runs = [seed_run(tmp_path / name, 7, 30, seed=0) for name in ("f0", "f0b")]
    assert not together(tmp_path, *runs)
    runs += [seed_run(tmp_path / "f1", 2, 17, seed=1)]
    assert "f0, f1 greedy 5 % 7, 2 0–37 % 24 % 30, 17 0–100 %" in together(tmp_path, *runs)


@pytest.mark.parametrize(
    "starts",
    [
        [{"start": "/p0"}, {"start": "/p1"}],
        [{"start": "/p0"}, {}],
        [{"start": "a policy in memory"}, {"start": "a policy in memory"}],
        [{"start": "hf://o/n", "revision": "a" * 40}, {"start": "hf://o/n", "revision": "b" * 40}],
        [{"start": "/p", "content": {"start_content": which}} for which in ("8d", "35")],
        [{"start": "/p", "content": {"code": {"mine": which}}} for which in ("8d", "35")],
        [{"rate": 1}, {"rate": 2}],
        [{}, {"finished": False}],
    ],
    ids=[
        "other policies",
        "a policy and none",
        "in memory",
        "another commit",
        "replaced",
        "other code",
        "another setting",
        "not finished",
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_told_together(tmp_path, starts):
    runs = [seed_run(tmp_path / f"r{n}", 7, 30, **{"seed": 5 + n} | start) for n, start in enumerate(starts)]
    assert not together(tmp_path, *runs)


def test_what_all_seeds_begin_with_is_measured_once(tmp_path):
    runs = [seed_run(tmp_path / f"r{n}", 20, 30 + n, seed=n, start="/p") for n in (0, 1)]
    assert "greedy 20 % 20 13–29 % 30 % 30, 31 " in together(tmp_path, *runs)


def test_runs_of_supervised_training_are_no_seeds_of_practice(tmp_path):
    runs = [trained(tmp_path / f"q{seed}" / "sft", seed).parent for seed in (0, 1)]
    for path in runs:
        with RunFolder.open(path) as run:
            run.finish("all stages done")
    for some in (runs, runs[:1]):
        assert not together(tmp_path, *some, seed_run(tmp_path / f"rl{len(some)}", 7, 30, seed=2))


def test_policies_that_were_trained_alike_with_the_runs_own_seeds_are_seeds_too(tmp_path):
    def whole(name: str, seed: int, *, of: int, demos: int = 1, **sft) -> Path:
        policy = trained(tmp_path / name / "sft", seed, **sft)
        return begun(seed_run(tmp_path / name / "rl", 7, 30 + of, seed=of, start=policy), seed, demos)

    one = whole("q0", 0, of=0)
    assert "q0/rl, q1/rl greedy 7 % 7, 7 " in together(tmp_path, one, whole("q1", 1, of=1))
    assert not together(tmp_path, one, whole("q2", 0, of=2))  # fine-tuned with a seed that is not the run's
    assert not together(tmp_path, one, whole("q3", 3, of=3, rate=9))
    assert not together(tmp_path, one, whole("q4", 4, of=4, demos=9))
    for name in ("q0", "q1"):  # moved meanwhile
        (tmp_path / "moved").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert "q0/rl, q1/rl greedy" in together(tmp_path, *(tmp_path / "moved" / name / "rl" for name in ("q0", "q1")))


def test_after_is_the_policy_that_was_kept_not_the_last_one(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        for iteration, successes in enumerate((10, 90, 70)):
            if iteration:
                run.log(iteration, {"rollout/success": 0.5})
            run.log_eval(iteration, result(successes))
        run.finish("stopped", policy_iteration=1)
    _, text = report(tmp_path, run.path)
    assert "10 % → 90 %" in text
    assert "The policy it kept is that of iteration 1." in text


def test_a_run_that_kept_the_policy_from_before_says_so_and_shows_its_states(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log_eval(0, result(60))
        for iteration in (0, 1):
            run.log_eval(iteration, result(50 - 30 * iteration), states="validation")
        run.log(1, {"rollout/success": 0.5})
        run.log_eval(1, result(61))  # of the policy that was kept, measured once more
        run.finish("all done", policy_iteration=0)
    _, text = report(tmp_path, run.path)
    assert "The policy it kept is the one from before: none was better on validation states." in text
    assert "61 of 100, 2 errors apart, policy of iteration 0" in text
    sides = {
        found.states: [side["eval"]["total"]["successes"] for side in (found.before, found.after)]
        for found in read_run(run.path).comparisons()
    }
    assert sides == {"test": [60, 61], "validation": [50, 50]}


def test_an_evaluation_at_the_end_is_one_of_the_policy_that_was_kept(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log_eval(0, result(10))
        for iteration in (1, 2, 3):
            run.log(iteration, {"rollout/success": 0.5})
            run.log_eval(iteration, result(60 + iteration), states="validation")
        run.log_eval(3, result(90))
        run.finish("all done", policy_iteration=2)
    page, text = report(tmp_path, run.path)
    assert "10 % → 90 %" in text
    assert "90 of 100, 2 errors apart, policy of iteration 2" in text
    assert "Validation success" not in text  # it has no before
    assert [block["states"] for block in views.thresholds(read_run(run.path))] == ["validation"]
    assert "validation, greedy" in text  # but it has a curve
    curve = page[page.index('<svg class="plot"') :]
    curve = curve[: curve.index("</svg>")]
    bars = [line for line in curve.splitlines() if "stroke-opacity: 0.5" in line]
    assert len(bars) == 2  # two held-out evaluations are points with their intervals, not a curve


def test_every_initial_state_is_shown_before_and_after(tmp_path):
    before = [("aa", "success"), ("bb", "failure"), ("cc", "failure"), ("dd", "error")]
    after = [("aa", "failure"), ("bb", "success"), ("cc", "failure"), ("dd", "success")]
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log_eval(0, result(1, before))
        run.log_eval(1, result(2, after))
    page, text = report(tmp_path, run.path)
    assert "1 gained, 1 lost, 1 solved neither time" in text
    assert page.count('title="state bb: failure before, success after"') == 2
    assert re.search(r'class="failure lost" data-n="1" title="state aa', page)
    assert 'class="error" data-n="4" title="state dd' in page


def test_wall_clock_is_split_in_proportion_to_what_the_workers_measured():
    row = {"time/simulate": 6, "time/render": 3, "time/infer": 3, "time/wait": 0, "time/rollout": 4}
    row |= {"time/update": 2, "time/eval": 1, "time/total": 9}
    assert views.wall_clock(row) == {
        "simulate": 2,
        "render": 1,
        "infer": 1,
        "wait": 0,
        "update": 2,
        "eval": 1,
        "other": pytest.approx(3),
    }
    assert [(part["label"], part["share"]) for part in views.time_split([row])] == [
        ("physics", 0.2),
        ("rendering", 0.1),
        ("policy", 0.1),
        ("update", 0.2),
        ("evaluation", 0.1),
        ("other", pytest.approx(0.3)),
    ]
    between = views.time_split([row, row | {"total/seconds": 40}])[-1]
    assert (between["label"], between["share"]) == ("other", pytest.approx((6 + 20) / 40))


def test_the_cost_of_a_success_rate_is_that_of_the_first_evaluation_to_reach_it(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        for iteration, successes in ((0, 10), (2, 85), (4, 79), (6, 92)):
            run.log_eval(iteration, result(successes), rollouts=100 * iteration, env_steps=iteration, seconds=iteration)
    (block,) = views.thresholds(read_run(run.path))
    assert [(line["threshold"], line["iteration"], line["rollouts"]) for line in block["lines"]] == [
        ("50\u00a0%", "2", "200"),
        ("80\u00a0%", "2", "200"),
        ("90\u00a0%", "6", "600"),
    ]
    assert "Not reached: 95 %." in report(tmp_path, run.path)[1]


def test_a_whole_page_has_all_its_parts(tmp_path, whole_run):
    page, text = report(tmp_path, whole_run)
    for heading in (
        "Learning curves",
        "Before and after, on the same initial states",
        "Every initial state, before and after",
        "What it cost to get there",
        "Where the time went",
        "How to reproduce",
    ):
        assert heading in text
    assert page.count('<svg class="plot"') == 4 * 6 + 1
    assert page.count('src="data:video/mp4;base64,') == 6
    assert "An auxiliary loss on privileged object positions was used in pre-training." in text
    assert "learn.learning_rate 0.0001" in text
    assert "torch 2" in text
    assert "What is missing" not in page


def test_the_page_asks_for_nothing_from_outside(tmp_path, whole_run):
    page, _ = report(tmp_path, whole_run)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert not re.findall(r"https?:|@import|url\((?!#)", page)


def test_only_so_many_videos_are_shown_and_solved_ones_come_first(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        outcomes = [("aa", "failure", "failure"), ("bb", "failure", "success"), ("cc", "success", "failure")]
        run.save_videos("before", [("t", state, was, moving_square(3)) for state, was, _ in outcomes])
        run.save_videos("after", [("t", state, now, moving_square(3)) for state, _, now in outcomes])
    assert [pair.state_id for pair in read_run(run.path).videos] == ["bb", "cc", "aa"]
    page, text = report(tmp_path, run.path, max_videos=1)
    assert page.count("<video") == 2
    assert "2 more in the run folder" in text


def test_several_runs_are_compared_in_one_table_and_the_same_curves(tmp_path, whole_run):
    other = make_run(tmp_path / "slow" / "rl", iterations=6, speed=0.1, videos=0)
    page, text = report(tmp_path, whole_run, other)
    assert "2 runs: drawer-open-v3" in text
    assert "quick/rl" in text
    assert "slow/rl" in text
    curve = page[page.index('<svg class="plot"') :]
    curve = curve[: curve.index("</svg>")]
    assert "var(--s0)" in curve
    assert "var(--s1)" in curve


def test_many_tasks_get_a_row_each(tmp_path):
    folder = make_run(tmp_path / "multi", tasks=("door-open-v3", "reach-v3", "push-v3", "drawer-open-v3"), iterations=3)
    _, text = report(tmp_path, folder)
    assert "4 tasks" in text
    assert text.count("door-open-v3") >= 4


def test_an_interrupted_run_gives_a_page_that_says_so(tmp_path):
    folder = make_run(tmp_path / "run", iterations=4, finished=False)
    with open(folder / "metrics.jsonl", "a") as log:
        log.write('{"iteration": 5, "rollo')
    shutil.rmtree(folder / "videos" / "after")
    _, text = report(tmp_path, folder)
    assert "The run has not ended: it was interrupted, or was still going on, after iteration 4." in text
    assert "No videos from after post-training." in text


def test_a_run_that_has_nothing_yet_gives_a_page_that_says_so(tmp_path):
    RunFolder.create(tmp_path / "run", {}).close()
    page, text = report(tmp_path, tmp_path / "run")
    for gap in ("before its first iteration", "No iteration was logged", "No evaluation from before", "No videos"):
        assert gap in text
    assert "<svg" not in page


def test_a_damaged_log_or_video_is_named_and_the_rest_is_shown(tmp_path):
    folder = make_run(tmp_path / "run", iterations=3)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "garbage", *lines[1:]]) + "\n")
    broken = next((folder / "videos" / "before").iterdir())
    broken.write_bytes(b"not a video")
    page, text = report(tmp_path, folder)
    assert "metrics.jsonl, line 2" in text
    assert f"A video is left out: {broken}" in text
    assert page.count("<video") == 5
    assert "Every initial state, before and after" in text


def test_a_supervised_run_shows_every_number_it_logged(tmp_path):
    with RunFolder.create(tmp_path / "sft", {}, kind="sft") as run:
        for step in (100, 200, 300):
            run.log(step, {"policy/loss": 1 / step, "policy/accuracy": step / 400, "total/seconds": step})
        run.finish("all steps done")
    page, text = report(tmp_path, run.path)
    assert page.count('<svg class="plot"') == 2
    assert "policy/loss" in text
    assert "policy/accuracy" in text


def test_what_a_run_contains_cannot_become_markup(tmp_path):
    evil = "<script>alert(1)</script>"
    with RunFolder.create(tmp_path / "run", {"notes": [evil], "field": evil}) as run:
        run.log_eval(0, evaluation({evil: 0.5}, f"greedy {evil}", np.random.default_rng(0), trials=3))
        run.log_eval(1, evaluation({evil: 0.9}, f"greedy {evil}", np.random.default_rng(0), trials=3))
        run.log(1, {"rollout/success": 0.5})
        run.finish(evil)
    page, text = report(tmp_path, run.path)
    assert evil not in page
    assert page.count("<script>") == 1
    assert evil in text


def test_folders_that_are_no_runs_or_come_twice_are_refused_and_no_page_is_left(tmp_path, whole_run):
    out = tmp_path / "report.html"
    with pytest.raises(ConfigError, match="at least one"):
        write_report([], out)
    with pytest.raises(ConfigError, match="twice"):
        write_report([whole_run, str(whole_run)], out)
    with pytest.raises(RunError, match="not a run folder"):
        write_report([whole_run, tmp_path], out)
    with pytest.raises(RunError, match=r"it contains .*rl"):
        write_report([whole_run.parent], out)
    assert not out.exists()


def test_a_report_replaces_nothing_but_a_page(tmp_path, whole_run):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "theirs.html").write_text("<!DOCTYPE html><html><title>My ript report, by hand</title></html>")
    for out in (whole_run / "config.json", tmp_path / "notes.txt", tmp_path / "theirs.html"):
        before = out.read_bytes()
        with pytest.raises(RunError, match="is there already, and is not a report of ript"):
            write_report([whole_run], out)
        assert out.read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="is no regular file"):
        write_report([whole_run], tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    page = write_report([whole_run], tmp_path / "page.html")
    assert write_report([whole_run], page).read_text().lower().startswith("<!doctype html")  # again, in its place


def test_a_result_that_is_no_table_is_named_and_the_rest_is_shown(tmp_path):
    run = make_run(tmp_path / "run", iterations=1)
    (run / "result.json").write_text("[1]")
    assert "expected an object" in write_report([run], tmp_path / "page.html").read_text()


def test_the_report_of_a_running_run_needs_no_lock(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log(1, {"rollout/success": 0.5})
        assert "not ended" in report(tmp_path, run.path)[1]


def test_metrics_that_are_null_or_missing_leave_gaps_not_errors(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log(1, {"rollout/success": 0.5, "update/kl": float("nan"), "rollout/signal_share": 0.2})
        run.log(2, {"rollout/success": float("nan")})
    page, _ = report(tmp_path, run.path)
    assert page.count('<svg class="plot"') == 4 * 2
    assert json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])["update/kl"] is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.0\u00a0s"),
        (9.94, "9.9\u00a0s"),
        (59.6, "1\u00a0min"),
        (312.4, "5\u00a0min 12\u00a0s"),
        (None, "–"),
        (3700, "1\u00a0h 1\u00a0min"),
    ],
)
def test_durations_are_written_as_people_say_them(seconds, words):
    assert views.duration(seconds) == words


def test_runs_are_told_apart_by_the_shortest_ending_of_their_paths(tmp_path):
    paths = [tmp_path / "a" / "rl", tmp_path / "b" / "rl"]
    assert views.unique_names(paths) == ["a/rl", "b/rl"]
    assert views.unique_names(paths[:1]) == ["rl"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "result.json").write_text('{"reason": "done", "seconds": [1]}'),
        lambda run: (run / "result.json").write_text('{"reason": "done", "seconds": {"post-train": []}}'),
    ],
)
def test_a_value_that_no_run_writes_is_an_error_that_names_the_run(tmp_path, damage):
    run = make_run(tmp_path / "run", iterations=1)
    damage(run)
    with pytest.raises(RunError, match=f"{run} holds what no run writes"):
        write_report([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_page_has_every_colour_of_runs_in_light_and_in_dark(tmp_path):
    page, _ = report(tmp_path, make_run(tmp_path / "run"))
    light, dark = page.split("prefers-color-scheme: dark", 1)
    for number in range(RUN_COLORS):
        colours = [re.findall(rf"--s{number}: (#[0-9a-f]{{6}});", part) for part in (light, dark)]
        assert colours[0] and colours[1] and colours[0] != colours[1]
    assert len(set(re.findall(r"--s\d+: (#[0-9a-f]{6});", light))) == RUN_COLORS


def test_what_may_not_be_read_is_said_to_be_that_and_not_to_be_missing(tmp_path, capsys):
    folder = make_run(open_to_all(tmp_path) / "run", iterations=3)
    closed = ("evals.jsonl", "metrics.jsonl", "result.json", "videos/before", "videos")
    for name in closed:
        mode = (folder / name).stat().st_mode
        (folder / name).chmod(0)
        with as_ordinary_user():
            missing = list(read_run(folder).missing)
        (folder / name).chmod(mode)
        assert missing and all(f"{folder / name}" in line and "permission denied" in line for line in missing), missing
        said = capsys.readouterr().err
        assert all(line in said for line in missing)


def test_what_each_node_of_a_cluster_did_is_a_row_of_the_page_and_a_line_of_the_screen(capsys) -> None:
    row = {"workers": 2.0, "simulate": 6.0, "render": 1.0, "infer": 1.0, "wait": 0.5, "rollouts": 8.0}
    row |= {"worker_restarts": 1.0, "bytes": 2e6}
    logged = of_nodes({"node 1": row, "node 2": row | {"simulate": 0.0}}, seconds=5.0)
    assert logged["time/node 1/idle"] == pytest.approx(0.2) and logged["time/node 2/idle"] == pytest.approx(0.8)
    said = capsys.readouterr().err.splitlines()
    assert [line.strip().partition(";")[0] for line in said] == ["node 2: idle 80%", "node 1: idle 20%"]
    assert "simulate 6.0 s, render 1.0 s, infer 1.0 s, wait 0.5 s; 8 rollouts, 1 restarts, 2.0 MB" in said[1]
    of_nodes({f"node {number}": row for number in range(64)}, seconds=5.0)
    assert len(many := capsys.readouterr().err.splitlines()) == 9 and "64 nodes, idle 20% in the mean" in many[0]
    first, second = views.nodes([logged, logged, {"time/rollout": 5.0}])
    assert (first["name"], first["rollouts"], first["restarts"]) == ("node 1", "16", "2")
    assert first["idle"].startswith("20") and second["idle"].startswith("80") and first["bytes"].startswith("4.0")
    assert views.nodes([{"time/rollout": 5.0}]) == []


def test_how_long_one_policy_for_all_workers_was_idle_and_they_stands_below_the_times(tmp_path):
    assert views.idle([{"time/collect": 5.0}]) == {}
    folder = make_run(tmp_path / "run", iterations=2)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row, seconds, policy, workers in zip(rows, (1.0, 3.0), (0.2, 0.6), (0.9, 0.5), strict=True):
        row |= {"time/collect": seconds, "time/policy_idle": policy, "time/workers_idle": workers}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, words = report(tmp_path, folder)
    assert "was idle 50 % of the time and the workers 60 %, over all iterations" in words


def test_a_setting_stands_once_with_what_the_run_found_in_the_place_of_what_its_recipe_left_open():
    recipe = {"iterations": 2, "notes": ["smaller"], "policy": {"kind": "quest", "chunk": 0}}
    rows = flatten({"recipe_config": recipe, "policy": {"kind": "quest", "chunk": 8}, "start": None, "notes": []})
    assert rows == [("iterations", "2"), ("policy.kind", "quest"), ("policy.chunk", "8"), ("start", "null")]
