import json
import os
import sys
from pathlib import Path

import pytest

from ript.doctor import (
    GIB,
    Check,
    Outcome,
    check_clip,
    check_cores,
    check_disk,
    check_gpu,
    check_memory,
    check_packages,
    check_python,
    check_renderer,
    check_shared_memory,
    check_threads,
    doctor,
    healthy,
    required_packages,
    run_child,
    to_json,
)


@pytest.fixture(scope="module")
def found():
    return {check.name: check for check in doctor()}


def test_this_machine_is_looked_at_for_real(found):
    assert {"Python", "package torch", "package mujoco", "language model", "cores", "threads", "memory", "disk"} < set(
        found
    )
    assert found["package torch"].ok and found["package torch"].detail[0].isdigit()
    assert found["language model"].detail == "all-MiniLM-L6-v2, 91 MB"
    assert found["disk"].ok and found["Python"].ok
    assert healthy(list(found.values())), "\n".join(map(str, found.values()))


def test_the_renderer_really_renders_a_frame(found):
    assert found["renderer"].ok, str(found["renderer"])
    assert "64x64 frame in" in found["renderer"].detail


def test_clip_is_an_extra_that_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RIPT_CLIP", str(Path(__file__).parent / "policies" / "clip"))
    assert check_clip().ok and not check_clip().remedy
    monkeypatch.setenv("RIPT_CLIP", str(tmp_path))
    absent = check_clip()
    assert not absent.ok and not absent.required and absent.detail == f"no config.json in {tmp_path}"
    assert "set RIPT_CLIP to a folder with the files of openai/clip-vit-base-patch32" in absent.remedy


def test_results_are_one_json_document(found):
    document = json.loads(json.dumps(to_json(list(found.values()))))
    assert document["ok"] is True
    assert {frozenset(check) for check in document["checks"]} == {
        frozenset(["name", "ok", "detail", "remedy", "required"])
    }


def test_results_are_told_as_they_come():
    told = []

    class Enough(Exception):
        pass

    def stop_after_one(check):
        told.append(check.name)
        raise Enough

    with pytest.raises(Enough):
        doctor(on_check=stop_after_one)
    assert told == ["Python"]


def test_what_is_not_required_may_be_absent():
    absent = Check(name="GPU", ok=False, detail="none", required=False)
    missing = Check(name="renderer", ok=False, detail="none", remedy="install one")
    assert healthy([absent]) and not healthy([absent, missing])
    assert str(absent).startswith("absent ") and "-> install one" in str(missing) and "MISSING" in str(missing)


# ---- child processes ----


@pytest.fixture
def packages(tmp_path):
    """An environment in which modules of given source can be imported by a child."""

    def make(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}

    return make


def test_a_package_that_crashes_on_import_takes_only_its_child_down(packages):
    env = packages(crashing="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    outcome = run_child("packages", ["crashing"], env=env)
    assert outcome == Outcome(None, "crashed with SIGSEGV")
    (check,) = check_packages(outcome)
    assert not check.ok and "crashed with SIGSEGV" in check.detail and "make clean install" in check.remedy


def test_a_package_that_hangs_on_import_is_given_up_after_the_time_limit(packages):
    outcome = run_child("packages", ["hanging"], env=packages(hanging="import time; time.sleep(60)"), time_limit=1.5)
    assert outcome.value is None and outcome.problem == "gave no answer in 2 s"


def test_each_broken_package_is_named_and_the_others_are_still_tried(packages):
    env = packages(broken="raise ImportError('libfoo.so: cannot open')", leaving="raise SystemExit(3)", fine="")
    outcome = run_child("packages", ["broken", "leaving", "fine", "no-such-package"], env=env)
    assert outcome.value["problems"] == {
        "broken": "ImportError: libfoo.so: cannot open",
        "leaving": "SystemExit: 3",
        "no-such-package": "ModuleNotFoundError: No module named 'no_such_package'",
    }


def test_a_package_that_cannot_be_imported_fails_its_own_check_only():
    probed = Outcome({"problems": {"torch": "ImportError: libgomp.so.1"}, "gpus": []})
    checks = {c.name: c for c in check_packages(probed)}
    assert not checks["package torch"].ok
    assert "cannot be imported: ImportError: libgomp.so.1" in checks["package torch"].detail
    assert all(check.ok for name, check in checks.items() if name != "package torch")


def test_required_packages_are_those_of_the_project_without_the_development_tools():
    names = required_packages()
    assert {"torch", "numpy", "mujoco", "metaworld", "h5py", "pillow"} <= set(names)
    assert not {"pytest", "ruff", "mypy", "wandb", "tensorboard"} & set(names)


# ---- the renderer ----


def test_a_backend_that_does_not_exist_is_reported_with_one_that_works(found):
    env = {**os.environ, "MUJOCO_GL": "nonsense"}
    check = check_renderer(env, lambda environment: run_child("render", env=environment))
    assert not check.ok
    assert check.detail.startswith("MUJOCO_GL=nonsense: ")
    working = found["renderer"].detail.split(",")[0]
    assert check.remedy == f"{working} works: export MUJOCO_GL={working}"


def render_with(**results):
    """A renderer whose outcome depends on MUJOCO_GL ("" when not set)."""
    return lambda env: results.get(env.get("MUJOCO_GL", "default"), Outcome(None, "crashed with SIGSEGV"))


def frame(backend, red=800):
    return Outcome({"backend": backend, "milliseconds": 2.0, "red_pixels": red})


def test_a_crash_of_the_default_renderer_is_reported_with_the_backend_that_works():
    check = check_renderer({}, render_with(osmesa=frame("osmesa")))
    assert not check.ok and "crashed with SIGSEGV" in check.detail
    assert check.remedy == "osmesa works: export MUJOCO_GL=osmesa"


def test_without_any_renderer_the_remedy_is_what_to_install():
    check = check_renderer({}, render_with())
    assert not check.ok and "apt-get install libegl1" in check.remedy


def test_an_empty_picture_is_no_working_renderer():
    check = check_renderer({}, render_with(default=frame("egl", red=0)))
    assert not check.ok and "does not show the scene" in check.detail


# ---- numbers ----


def test_an_old_python_is_refused():
    assert not check_python((3, 10, 14)).ok and check_python((3, 11, 0)).ok


def test_more_threads_than_cores_are_advised_against():
    assert not check_threads({"OMP_NUM_THREADS": "8"}, cores=2).ok
    assert check_threads({"OMP_NUM_THREADS": "2"}, cores=2).ok and check_threads({}, cores=2).ok


def test_a_busy_or_single_core_machine_is_told_what_to_expect():
    assert check_cores(2, load=0.1).remedy == ""
    assert "busy" in check_cores(2, load=1.8).remedy
    assert "--workers 0" in check_cores(1, load=0.0).remedy


def test_little_memory_or_shared_memory_is_reported_with_a_remedy():
    assert check_memory(8 * GIB, 5 * GIB).ok and check_shared_memory(GIB).ok
    little = check_memory(8 * GIB, 2 * GIB)
    assert not little.ok and not little.required and "2.0 of 8.0 GiB" in little.detail
    assert "--shm-size" in check_shared_memory(32 * 2**20).remedy


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    assert check_disk(tmp_path / "not" / "made" / "yet").ok
    check = check_disk(tmp_path.__class__("/proc"))
    assert not check.ok and check.required and "cannot write in /proc" in check.detail


def test_a_gpu_is_named_and_its_absence_is_no_fault():
    check = check_gpu(Outcome({"problems": {}, "gpus": ["NVIDIA X (80 GiB)"]}))
    assert check.ok and check.detail == "NVIDIA X (80 GiB); `ript rl --device cuda` trains there"
    assert healthy([check_gpu(Outcome(None, "crashed with SIGSEGV"))])
