import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from disks import as_ordinary_user, open_to_all
from hypothesis import given, settings
from hypothesis import strategies as st
from point import HORIZON, Point

from ript.core.children import running
from ript.core.errors import ConfigError, DataError, NotFiniteError, RunError, SimulatorError, WorkerError
from ript.core.types import InitialState, Task
from ript.demos.collect import Plan, collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.formats.writer import _Disk
from ript.demos.records import Demo

TASKS = ["point/red", "point/unlucky", "point/blue"]
HERE = Path(__file__).parent


def same(a, b):
    """Whether two demonstrations are equal in everything."""
    arrays = ("actions", "executed_actions", "frame_steps", "proprio", "privileged")
    return (
        (a.initial_state.id, a.initial_state.label, a.task) == (b.initial_state.id, b.initial_state.label, b.task)
        and a.tries == b.tries
        and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
        and a.images.keys() == b.images.keys()
        and all(np.array_equal(a.images[name], b.images[name]) for name in a.images)
    )


def leftovers(folder):
    return [p.name for p in folder.iterdir()]


def contents(file):
    """What an HDF5 file holds: name -> (attributes, bytes of a dataset), wherever it lies in the file."""
    found = {}

    def see(name, thing):
        attributes = {key: getattr(value, "tobytes", lambda v=value: v)() for key, value in thing.attrs.items()}
        found[name] = attributes, thing[()].tobytes() if isinstance(thing, h5py.Dataset) else None

    with h5py.File(file) as h5:
        h5.visititems(see)
    return found


def test_the_file_holds_the_same_demonstrations_whatever_the_number_of_workers(tmp_path):
    collected = []
    for workers in (0, 1, 3):
        out = tmp_path / f"{workers}.hdf5"
        collect_demos(Point, TASKS, 4, out, seed=3, workers=workers)
        collected.append(list(open_demos(out).demos()))
    assert [demo.task.key for demo in collected[0]] == [key for key in TASKS for _ in range(4)]
    for other in collected[1:]:
        assert len(other) == 12
        assert all(same(a, b) for a, b in zip(collected[0], other, strict=True))
    one, several = (contents(tmp_path / f"{workers}.hdf5") for workers in (0, 3))
    assert one == several and len(one) > 12 * 6


class Endless(Point):
    """Never says that an episode is over."""

    def step_chunk(self, actions):
        self._done, self._steps = False, 0
        result = super().step_chunk(actions)
        return result if result.success else replace(result, done=False)


def test_an_expert_that_fails_in_a_simulator_that_never_ends_is_given_up_at_the_horizon(tmp_path):
    with pytest.raises(SimulatorError, match="the scripted expert of point/unlucky succeeded in"):
        collect_demos(Endless, ["point/unlucky"], 50, tmp_path / "d.hdf5", max_tries_factor=0.1)


def test_failed_tries_are_dropped_and_counted_on_the_demonstration_that_follows(tmp_path):
    out = tmp_path / "d.hdf5"
    end = collect_demos(Point, ["point/unlucky"], 6, out)
    numbers = [int(demo.initial_state.label.split("#")[1]) for demo in open_demos(out).demos()]
    assert numbers == sorted(numbers)
    tries = [demo.tries for demo in open_demos(out).demos()]
    assert list(np.cumsum(tries)) == [n + 1 for n in numbers]
    assert end.tries == sum(tries) > 6, "the seed should give this expert some failures"
    assert all(demo.initial_state.state[2] <= 0 for demo in open_demos(out).demos()), "a failed try was kept"


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=30, max_size=30), st.randoms(use_true_random=False), st.integers(1, 4))
def test_whatever_the_order_in_which_tries_finish_the_first_successes_are_kept_in_order(outcomes, random, per_task):
    """Two tasks of which try n succeeds if outcomes[n]; up to four under way, finishing in any order."""
    wanted = [n for n, success in enumerate(outcomes) if success][:per_task]
    plan = Plan(["a", "b"], per_task, max_tries=30)
    under_way, placed, made = [], {}, []
    try:
        while True:
            while len(under_way) < 4 and (job := plan.take(random.choice(["a", "b", None]))):
                under_way.append(job)
                made.append(job)
            if not under_way:
                break
            key, number = under_way.pop(random.randrange(len(under_way)))
            for place, demo in plan.finish(key, number, demo_of(key, number) if outcomes[number] else None):
                assert place not in placed
                placed[place] = demo
    except SimulatorError:
        assert len(wanted) < per_task
        return
    assert [(placed[i].task.name, int(placed[i].initial_state.label)) for i in range(2 * per_task)] == [
        (key, n) for key in ("a", "b") for n in wanted
    ]
    assert [placed[i].tries for i in range(per_task)] == list(np.diff([-1, *wanted]))
    assert sorted(made) == [(key, n) for key in ("a", "b") for n in range(wanted[-1] + 1)], "a try was made in vain"


def demo_of(key, number):
    task = Task(suite="s", name=key, instruction="", index=0, horizon=9)
    state = InitialState(task=task, state=np.zeros(1), origin="sampled", label=str(number))
    nothing = np.zeros((1, 1), np.float32)
    return Demo(
        initial_state=state,
        actions=nothing,
        executed_actions=nothing,
        frame_steps=np.zeros(1, np.int64),
        images={},
        proprio=nothing,
        privileged=None,
        tries=1,
    )


def test_labels_are_the_clean_expert_and_noise_goes_to_the_executed_actions_only(tmp_path):
    out = tmp_path / "d.hdf5"
    collect_demos(Point, ["point/red"], 80, out, noise=0.2)
    noise = []
    for demo in open_demos(out).demos():
        sim = Point("point/red")
        sim.reset(demo.initial_state)
        for clean, executed in zip(demo.actions, demo.executed_actions, strict=True):
            assert np.array_equal(clean, sim.expert_action())
            sim.step_chunk(executed[None])
        inside = (np.abs(demo.actions) < 0.3) & (np.abs(demo.executed_actions) < 1)
        noise.append((demo.executed_actions - demo.actions)[inside])
        assert np.abs(demo.executed_actions).max() <= 1
    noise = np.concatenate(noise)
    assert len(noise) > 300
    assert abs(noise.std() - 0.2) < 0.02
    assert abs(noise.mean()) < 0.03


def test_looks_are_taken_before_every_second_step_and_match_the_simulator(tmp_path):
    out = tmp_path / "d.hdf5"
    collect_demos(Point, ["point/red"], 3, out, every=2)
    for demo in open_demos(out).demos():
        assert list(demo.frame_steps) == list(range(0, len(demo), 2))
        sim = Point("point/red")
        looks = [sim.reset(demo.initial_state)]
        for step, action in enumerate(demo.executed_actions):
            if step and step % 2 == 0:
                looks.append(sim.observe())
            success = sim.step_chunk(action[None]).success
            assert success == (step == len(demo) - 1)
        assert np.array_equal(np.concatenate([look.images["top"] for look in looks]), demo.images["top"])
        assert np.array_equal(np.concatenate([look.proprio for look in looks]), demo.proprio)


def test_no_picture_is_rendered_of_a_failed_try_beyond_its_first(tmp_path):
    made = []

    def make(key):
        made.append(Point(key))
        return made[-1]

    end = collect_demos(make, ["point/red", "point/unlucky"], 6, tmp_path / "d.hdf5")
    assert end.tries > 12
    assert len(made) == 2, "a simulator was not used again"
    assert sum(sim.rendered for sim in made) == end.frames + end.tries
    assert all(sim.closed for sim in made)


def test_an_expert_that_never_succeeds_ends_in_a_clear_error_after_bounded_tries(tmp_path):
    out = tmp_path / "d.hdf5"
    with pytest.raises(SimulatorError, match=r"point/hopeless succeeded in 0 of 10 tries.*noise"):
        collect_demos(Point, ["point/hopeless"], 2, out, max_tries_factor=5)
    assert leftovers(tmp_path) == []


def test_a_simulator_whose_replay_differs_is_found_out(tmp_path):
    class Forgetful(Point):
        def reset(self, initial_state):
            self._resets = getattr(self, "_resets", 0) + 1
            seen = super().reset(initial_state)
            self._position += 0.3 * (self._resets - 1)
            return seen

    with pytest.raises(SimulatorError, match="breaks its contract"):
        collect_demos(Forgetful, ["point/red"], 1, tmp_path / "d.hdf5")


def test_a_simulator_without_an_expert_is_refused(tmp_path):
    class NoExpert(Point):
        expert_action = None

        def __getattribute__(self, name):
            if name == "expert_action":
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(ConfigError, match="no scripted expert"):
        collect_demos(NoExpert, ["point/red"], 1, tmp_path / "d.hdf5")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"per_task": 0}, "per_task must be .* got 0"),
        ({"every": 0}, "every must be .* got 0"),
        ({"noise": -0.1}, "noise must be .* got -0.1"),
        ({"noise": float("nan")}, "noise must be .* got nan"),
        ({"workers": -1}, "workers must be .* got -1"),
        ({"task_keys": []}, "no task"),
        ({"task_keys": ["point/red", "point/red"]}, "named twice"),
    ],
)
def test_arguments_that_cannot_work_are_named(tmp_path, wrong, message):
    arguments = {"task_keys": ["point/red"], "per_task": 1, **wrong}
    with pytest.raises(ConfigError, match=message):
        collect_demos(Point, out=tmp_path / "d.hdf5", **arguments)


def test_progress_grows_to_what_was_wanted(tmp_path):
    seen = []
    end = collect_demos(Point, TASKS, 2, tmp_path / "d.hdf5", progress=seen.append)
    assert [p.tries for p in seen] == list(range(1, end.tries + 1))
    assert seen[-1] == end
    assert end.demos == 6


def test_a_process_has_one_simulator_open_at_a_time(tmp_path):
    keys, log = [f"point/{i}" for i in range(5)], tmp_path / "log"
    make = functools.partial(Logged, log=str(log))
    for workers in (0, 2):
        log.write_text("")
        collect_demos(make, keys, 2, tmp_path / f"{workers}.hdf5", workers=workers)
        steps: dict[str, list[str]] = {}
        for line in log.read_text().splitlines():
            pid, what = line.split()
            steps.setdefault(pid, []).append(what)
        assert len(steps) == max(1, workers)
        assert all(what == ["made", "closed"] * (len(what) // 2) for what in steps.values())


class Logged(Point):
    """Says when it is made and closed, and where."""

    def __init__(self, key, log):
        super().__init__(key)
        self._log = log
        self._say("made")

    def close(self):
        self._say("closed")
        super().close()

    def _say(self, what):
        with open(self._log, "a") as log:
            log.write(f"{os.getpid()} {what}\n")


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_nan_from_the_expert_is_reported_with_task_step_and_state(tmp_path, workers):
    make = functools.partial(Point, fault="nan")
    with pytest.raises(NotFiniteError, match=r"point/red answered \[nan.*at step 0 from initial state [0-9a-f]{16}"):
        collect_demos(make, ["point/red"], 1, tmp_path / "d.hdf5", workers=workers)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("what", ["proprio", "privileged"])
def test_a_simulator_that_shows_nan_is_found_out_before_it_is_written(tmp_path, what):
    class Blind(Point):
        def observe(self):
            seen = super().observe()
            if what == "proprio" and self._steps == 2:
                seen.proprio[0, 1] = np.nan
            return seen

        def privileged(self):
            seen = super().privileged()
            return np.full_like(seen, np.inf) if what == "privileged" and self._steps == 2 else seen

    with pytest.raises(NotFiniteError, match=rf"point/red, initial state [0-9a-f]{{16}}: {what} holds NaN .* step 2"):
        collect_demos(Blind, ["point/red"], 3, tmp_path / "d.hdf5")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "patience", "message"),
    [
        ("raise", 60, r"worker 0, point/red, try 0: point/red, initial state \w{16}: ValueError: the table broke"),
        ("interrupt", 60, r"worker 0, point/red, try 0: point/red, initial state \w{16}: KeyboardInterrupt"),
        ("die", 60, r"try 0: died with exit code 7 while working on point/red, initial state \w{16}$"),
        ("hang", 2, r"try 0: hung: no sign of life for 2 s while working on point/red, initial state \w{16}$"),
    ],
)
def test_a_worker_that_fails_is_reported_with_its_address_and_leaves_nothing_behind(tmp_path, fault, patience, message):
    make = functools.partial(Point, fault=fault)
    started = time.monotonic()
    kind = SimulatorError if fault in ("raise", "interrupt") else WorkerError
    with pytest.raises(kind, match=message) as caught:
        collect_demos(make, ["point/red"], 3, tmp_path / "d.hdf5", workers=1, try_seconds=patience)
    assert fault != "raise" or "in step_chunk" in caught.value.__notes__[0]
    assert time.monotonic() - started < 30
    assert leftovers(tmp_path) == []
    assert not running()


def slow_point(piece, seconds):
    """A `Point` one of whose methods takes so long."""

    class Slow(Point):
        pass

    def slow(self, *args):
        time.sleep(seconds)
        return getattr(super(Slow, self), piece)(*args)

    setattr(Slow, piece, slow)
    return Slow


@pytest.mark.parametrize("piece", ["step_chunk", "observe", "expert_action"])
def test_a_slow_try_is_not_silent_while_its_pieces_are_within_the_limit(tmp_path, piece):
    """A try has dozens of them, so that it takes many times the limit."""
    make, began = slow_point(piece, 0.1), time.monotonic()
    collect_demos(make, ["point/red"], 1, tmp_path / "d.hdf5", workers=1, noise=0.0, every=1, try_seconds=0.6)
    assert time.monotonic() - began > 0.9


@pytest.mark.parametrize("who", ["all", "workers"])
def test_workers_that_were_stopped_and_go_on_are_not_taken_for_hung(tmp_path, who):
    """As Ctrl-Z and fg do to the whole group: the parent was away as well."""
    limit = 1.0
    stopped = []

    def stop_for_long(progress):
        if not stopped:
            stopped.extend(child.pid for child in running())
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            if who == "all":
                time.sleep(3 * limit)
            threading.Timer(limit / 4, lambda: [os.kill(pid, signal.SIGCONT) for pid in stopped]).start()

    make = slow_point("step_chunk", 0.02)
    collect_demos(make, ["point/red"], 4, tmp_path / "d.hdf5", workers=2, try_seconds=limit, progress=stop_for_long)
    assert len(stopped) == 2 and len(list(open_demos(tmp_path / "d.hdf5").demos())) == 4


def test_an_interrupted_collection_leaves_an_older_file_of_that_name_untouched(tmp_path):
    out = tmp_path / "d.hdf5"
    collect_demos(Point, ["point/red"], 1, out)
    before = out.read_bytes()

    def interrupt(progress):
        if progress.demos >= 2:
            raise KeyboardInterrupt

    for workers in (0, 2):
        with pytest.raises(KeyboardInterrupt) as caught:  # keeps the frames, and what they refer to, alive
            collect_demos(Point, ["point/red"], 9, out, workers=workers, progress=interrupt)
        assert leftovers(tmp_path) == ["d.hdf5"]
        assert out.read_bytes() == before
        assert not running()
        del caught


def test_ctrl_c_while_hdf5_writes_is_not_lost(tmp_path, monkeypatch):
    writes = []
    write = _Disk.write

    def pressed_during(disk, data):
        writes.append(len(data))
        if len(writes) % 7 == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return write(disk, data)

    monkeypatch.setattr(_Disk, "write", pressed_during)
    with pytest.raises(KeyboardInterrupt):
        collect_demos(Point, ["point/red"], 50, tmp_path / "d.hdf5")
    assert len(writes) < 60, "it went on writing"
    assert leftovers(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def run_script(tmp_path, body):
    """Start a Python program that collects into tmp_path/out; it may use Point, collect_demos and `out`."""
    (tmp_path / "out").mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, os\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "from point import Point\n"
        "from ript.core.children import running\n"
        "from ript.demos.collect import collect_demos\n"
        f"out = {str(tmp_path / 'out' / 'd.hdf5')!r}\n"
        "if __name__ == '__main__':\n" + textwrap.indent(textwrap.dedent(body), "    ")
    )
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, str(script)], stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_ctrl_c_ends_collection_in_seconds_with_no_file_and_no_process_left(tmp_path):
    program = run_script(
        tmp_path,
        """
        def say(p):
            print(p.demos, *[c.pid for c in running()], flush=True)
        try:
            collect_demos(Point, ["point/red", "point/blue"], 100000, out, workers=2, progress=say)
        except KeyboardInterrupt:
            sys.exit(130)
        """,
    )
    line = program.stdout.readline().split()
    children = [int(pid) for pid in line[1:]]
    assert len(children) == 2
    started = time.monotonic()
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, complaints = program.communicate(timeout=10)
    assert program.returncode == 130
    assert complaints == ""
    assert time.monotonic() - started < 5
    assert leftovers(tmp_path / "out") == []
    assert not any(is_running(pid) for pid in children)


def test_workers_whose_parent_is_killed_end_by_themselves(tmp_path):
    program = run_script(
        tmp_path,
        """
        def say(p):
            print(*[c.pid for c in running()], flush=True)
        collect_demos(Point, ["point/red", "point/blue"], 100000, out, workers=2, progress=say)
        """,
    )
    children = [int(pid) for pid in program.stdout.readline().split()]
    assert len(children) == 2
    program.kill()
    program.communicate(timeout=10)
    give_up = time.monotonic() + 5
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < give_up, "an orphan is still running"
        time.sleep(0.02)


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_full_disk_ends_in_one_clear_error_and_leaves_nothing_behind(tmp_path):
    program = run_script(
        tmp_path,
        """
        import resource
        from ript.core.errors import DataError
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        try:
            collect_demos(Point, ["point/red"], 200, out)
        except DataError as error:
            print(error)
        """,
    )
    said, complaints = program.communicate(timeout=60)
    assert program.returncode == 0, complaints
    assert said.strip() == (
        f"cannot write {tmp_path}/out/d.hdf5: the file would be larger than is allowed: raise the limit (ulimit -f), "
        "or use another disk (nothing half-written was left there)"
    )
    assert complaints == ""
    assert leftovers(tmp_path / "out") == []


def test_a_folder_that_may_not_be_written_to_is_said_before_any_work(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with as_ordinary_user(), pytest.raises(DataError, match=r"cannot write .*d.hdf5: permission denied: make it"):
        collect_demos(no_simulator, ["point/red"], 1, closed / "d.hdf5")


def test_a_folder_in_the_way_or_one_that_cannot_be_is_said_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*d.hdf5: something of that name is in the way"):
        collect_demos(no_simulator, ["point/red"], 1, tmp_path / "file" / "d.hdf5")
    with pytest.raises(RunError, match="is a folder: name a file in it"):
        collect_demos(no_simulator, ["point/red"], 1, tmp_path)


def test_nothing_but_an_older_demonstration_file_is_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    for name, what in (("notes.txt", "is not a demonstration file"), ("pipe", "is no regular file")):
        with pytest.raises(RunError, match=what):
            collect_demos(no_simulator, ["point/red"], 1, tmp_path / name)
    with pytest.raises(RunError, match="is a folder"):
        collect_demos(no_simulator, ["point/red"], 1, "")
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "pipe").is_fifo()
    with h5py.File(tmp_path / "theirs.hdf5", "w") as file:
        file.create_group("data").attrs["format"] = "robomimic"
    (tmp_path / "broken.hdf5").write_bytes((tmp_path / "theirs.hdf5").read_bytes()[:100])
    for name in ("theirs.hdf5", "broken.hdf5"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(RunError, match="is there already, and is not a demonstration file of ript"):
            collect_demos(no_simulator, ["point/red"], 1, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4
    for seed in (0, 1):
        collect_demos(Point, ["point/red"], 1, tmp_path / "ours.hdf5", seed=seed)
    assert open_demos(tmp_path / "ours.hdf5").files[0].settings["seed"] == 1


def test_a_file_that_may_not_be_read_is_not_replaced_although_it_could_be(tmp_path):
    (tmp_path / "theirs.hdf5").write_text("secret")
    (tmp_path / "theirs.hdf5").chmod(0)
    open_to_all(tmp_path).chmod(0o777)
    with as_ordinary_user(), pytest.raises(RunError, match=r"theirs\.hdf5 cannot be read: permission denied.*is there"):
        collect_demos(no_simulator, ["point/red"], 1, tmp_path / "theirs.hdf5")
    assert (tmp_path / "theirs.hdf5").read_text() == "secret"


def no_simulator(key):
    raise AssertionError("no simulator should be made")


def test_workers_do_not_import_torch(tmp_path):
    program = run_script(
        tmp_path,
        """
        collect_demos(Point, ["point/red"], 1, out)
        print("torch" in sys.modules)
        """,
    )
    said, complaints = program.communicate(timeout=60)
    assert said.strip() == "False", complaints


def test_a_try_ends_at_the_horizon():
    sim = Point("point/hopeless")
    (state,) = sim.initial_states(1)
    sim.reset(state)
    assert sum(not sim.step_chunk(sim.expert_action()[None]).done for _ in range(HORIZON)) == HORIZON - 1
