import dataclasses
import fcntl
import json
import re
import shutil
from functools import partial

import h5py
import numpy as np
import pytest
from disks import as_ordinary_user, open_to_all
from point import Point

from ript.core.errors import DataError
from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.formats.hdf5 import open_hdf5
from ript.demos.formats.writer import DemoWriter
from ript.demos.initial_states import demo_initial_states


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.hdf5"
    collect_demos(Point, ["point/red", "point/blue"], 3, path, seed=5)
    return path


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copy(good, tmp_path / "copy.hdf5")


def read_all(path):
    return list(open_demos(path).demos())


# --- layout ----------------------------------------------------------------------------------------------------------


def test_the_layout_is_that_of_robomimic_with_versions_render_settings_and_seed(good):
    with h5py.File(good) as file:
        demo = file["data/demo_0"]
        steps, looks = demo.attrs["num_samples"], demo.attrs["num_looks"]
        assert demo["actions"].shape == demo["executed_actions"].shape == (steps, 2)
        assert demo["states"].shape == (1, 4)
        assert demo["obs/top_rgb"].shape == (looks, 12, 12, 3)
        assert demo["obs/top_rgb"].compression == "gzip"
        assert demo["obs/proprio"].shape == (looks, 2)
        assert demo["obs/privileged"].shape == (looks, 3)
        assert file["data"].attrs["total"] == sum(file["data"][n].attrs["num_samples"] for n in file["data"])
    info = open_demos(good).info()
    (file,) = info["files"]
    assert file["settings"] == {"per_task": 3, "source": "expert", "seed": 5, "noise": 0.2, "every": 2}
    assert {"ript", "numpy", "h5py"} <= file["versions"].keys()
    assert file["bytes"] == good.stat().st_size
    assert info["render"] == {"shade": 200, "size": [12, 12]}
    assert info["tasks"]["point/red"]["demos"] == 3
    assert info["tasks"]["point/red"]["tries"] == 3


def test_what_is_written_is_read_back_to_the_last_bit(tmp_path):
    sim = Point("point/red")
    collect_demos(Point, ["point/red"], 1, tmp_path / "a.hdf5")
    (demo,) = read_all(tmp_path / "a.hdf5")
    odd = dataclasses.replace(demo, privileged=None, tries=7, actions=demo.actions - np.float32(1e-7))
    with DemoWriter(tmp_path / "b.hdf5", {"seed": 0}) as writer:
        writer.add(4, odd, sim.spec)
    (back,) = read_all(tmp_path / "b.hdf5")
    assert np.array_equal(back.actions, odd.actions)
    assert np.array_equal(back.images["top"], odd.images["top"])
    assert back.privileged is None
    assert back.tries == 7
    assert back.initial_state.id == odd.initial_state.id
    assert back.initial_state.state.tobytes() == odd.initial_state.state.tobytes()


def test_files_of_one_rendering_join_into_one_set(good, tmp_path):
    collect_demos(Point, ["point/green", "point/red"], 1, tmp_path / "more.hdf5", seed=6)
    both = open_demos([good, tmp_path / "more.hdf5"])
    (tmp_path / "link.hdf5").symlink_to(good)
    assert len(both) == 8 == len(open_demos([good, tmp_path / "more.hdf5", tmp_path / "link.hdf5", str(good)]))
    assert [task.key for task in both.tasks] == ["point/red", "point/blue", "point/green"]
    assert len(list(both.demos("point/red"))) == 4
    assert [e.task.key for e in both.select(["point/green", "point/red"], 1).entries] == ["point/green", "point/red"]


def test_initial_states_of_demonstrations_are_contexts_with_their_origin(good):
    states = demo_initial_states(open_demos(good), ["point/blue"])
    expected = Point("point/blue").initial_states(3, seed=5, split="demo")
    assert [s.id for s in states] == [s.id for s in expected]
    assert {s.origin for s in states} == {"demo"}
    assert states[0].label == "demo seed 5 #0"
    assert len(demo_initial_states(open_demos([good]))) == 6


def test_files_rendered_differently_are_refused_with_what_differs(good, tmp_path):
    collect_demos(partial(Point, shade=90), ["point/red"], 1, tmp_path / "dark.hdf5")
    with pytest.raises(DataError, match=r"dark.hdf5 .*good.hdf5: expected render.shade = 200, got 90"):
        open_demos([good, tmp_path / "dark.hdf5"])


def test_one_file_cannot_hold_two_renderings(tmp_path):
    def make(key):
        return Point(key, shade=200 if key == "point/red" else 90)

    with pytest.raises(DataError, match=r"point/blue comes with .*'shade': 90.*expected .*'shade': 200"):
        collect_demos(make, ["point/red", "point/blue"], 1, tmp_path / "d.hdf5")
    assert list(tmp_path.iterdir()) == []


def test_a_task_without_demonstrations_is_answered_with_what_is_there(good):
    with pytest.raises(DataError, match=r"no demonstration of point/rod; there are point/red, point/blue .*point/red"):
        list(open_demos(good).demos("point/rod"))
    with pytest.raises(DataError, match=r"3 demonstrations of point/red; expected at least 5"):
        open_demos(good).select(["point/red"], per_task=5)


def test_an_empty_collection_writes_no_file(tmp_path):
    with pytest.raises(DataError, match="no demonstration to write"), DemoWriter(tmp_path / "d.hdf5", {}):
        pass
    assert list(tmp_path.iterdir()) == []


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no demonstration file .*nowhere.hdf5; make one"):
        open_demos(tmp_path / "nowhere.hdf5")
    with pytest.raises(DataError, match="no demonstration file was given"):
        open_demos([])


def test_a_file_that_another_program_has_locked_is_read_all_the_same(good):
    with open(good, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert open_demos(good).tasks


def test_a_file_that_may_not_be_read_is_not_called_truncated(good, tmp_path):
    closed = open_to_all(tmp_path) / "closed.hdf5"
    closed.write_bytes(good.read_bytes())
    closed.chmod(0)
    with as_ordinary_user(), pytest.raises(DataError) as caught:
        open_demos(closed)
    assert str(caught.value).startswith(f"{closed} cannot be read: permission denied: let this user read it")


def test_an_error_of_the_disk_while_a_file_is_read_is_not_called_damage(copy):
    for words in ("file read failed, errno = 5, error message = 'Input/output error'", "errno = 116"):
        with pytest.raises(DataError, match=r"cannot be read: the (disk|network)") as caught, open_hdf5(copy):
            raise OSError(f"Can't synchronously read data ({words})")
        assert "collect it again" not in str(caught.value)


@pytest.mark.parametrize("lost", ["data", "actions", "privileged"])
def test_a_disk_that_fails_where_a_key_is_looked_up_is_not_taken_for_a_key_that_is_not_there(good, monkeypatch, lost):
    found = h5py.Group.__getitem__

    def failing(group, key):
        if str(key).endswith(lost):
            raise KeyError("Unable to synchronously open object (file read failed: errno = 5, error message = 'I/O')")
        return found(group, key)

    monkeypatch.setattr(h5py.Group, "__getitem__", failing)
    with pytest.raises(DataError, match=r"cannot be read: the disk reports an input/output error"):
        list(open_demos(good).demos())


def test_a_pointer_of_git_lfs_is_called_that(tmp_path):
    (tmp_path / "demos.hdf5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DataError, match=r"demos\.hdf5 is a pointer of Git LFS"):
        open_demos(tmp_path / "demos.hdf5")


def test_a_file_that_is_not_hdf5_is_named(tmp_path):
    path = tmp_path / "notes.hdf5"
    path.write_text("these are not the demonstrations you are looking for" * 50)
    with pytest.raises(DataError, match=r"notes.hdf5 is not a readable HDF5 file"):
        open_demos(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.97])
def test_a_truncated_file_is_named(copy, share):
    size = copy.stat().st_size
    with open(copy, "r+b") as file:
        file.truncate(int(size * share))
    with pytest.raises(DataError, match=r"copy.hdf5 .*(truncated|damaged)"):
        read_all(copy)


def test_hdf5_files_of_other_makers_are_refused_with_the_key(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["x"] = 1
    with pytest.raises(DataError, match=r"a.hdf5: no group 'data'"):
        open_demos(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = "{}"
        file["data/demo_0/actions"] = np.zeros((3, 7))
    with pytest.raises(DataError, match=r"b.hdf5: key 'data' has attribute format None; expected 'ript-demos'"):
        open_demos(tmp_path / "b.hdf5")


KEYS = ["actions", "executed_actions", "states", "obs/top_rgb", "obs/proprio", "obs/frame_steps"]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_dataset_is_named_with_its_file(copy, key):
    with h5py.File(copy, "r+") as file:
        del file[f"data/demo_2/{key}"]
    with pytest.raises(DataError, match=rf"copy.hdf5: key 'data/demo_2/{key}' is missing"):
        read_all(copy)


@pytest.mark.parametrize("key", KEYS)
def test_a_damaged_dataset_is_found_by_its_checksum(copy, key):
    with h5py.File(copy) as file:
        where = file[f"data/demo_1/{key}"].id.get_chunk_info(0)
    with open(copy, "r+b") as file:
        file.seek(where.byte_offset + where.size // 2)
        found = file.read(4)  # one changed bit of a compressed picture need not change the picture
        file.seek(-4, 1)
        file.write(bytes(byte ^ 0x55 for byte in found))
    assert len(open_demos(copy)) == 6, "opening reads the index only"
    with pytest.raises(DataError, match=rf"copy.hdf5: key 'data/demo_1/{key}' is damaged"):
        read_all(copy)


def replace_dataset(path, key, change):
    with h5py.File(path, "r+") as file:
        values = change(file[key][()])
        del file[key]
        file[key] = values


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("actions", lambda a: np.where(a == a.max(), np.nan, a), r"holds nan at \(\d+, \d+\)"),
        ("executed_actions", lambda a: a + np.float32(np.inf), r"holds inf at \(0, 0\)"),
        ("obs/proprio", lambda a: a * np.nan, r"holds nan"),
        ("states", lambda a: a * np.nan, r"holds nan"),
        ("states", lambda a: a + 1, r"expected the initial state [0-9a-f]{16}, got"),
        ("actions", lambda a: a[:-1], r"expected float32 \(\d+, 2\), got float32 \(\d+, 2\)"),
        ("actions", lambda a: a.astype(float), r"expected float32 .*got float64"),
        ("obs/top_rgb", lambda a: a[:, :6], r"expected uint8 \(\d+, 12, 12, 3\), got uint8 \(\d+, 6, 12, 3\)"),
        ("obs/top_rgb", lambda a: a[..., 0], r"expected uint8"),
        ("obs/frame_steps", lambda a: a[::-1], r"expected increasing steps in 0.."),
        ("obs/frame_steps", lambda a: a + 1000, r"expected increasing steps in 0.."),
        ("obs/privileged", lambda a: a[:-1], r"expected float32"),
    ],
)
def test_wrong_values_and_shapes_are_named_with_file_and_key(copy, key, change, message):
    replace_dataset(copy, f"data/demo_0/{key}", change)
    with pytest.raises(DataError, match=rf"copy.hdf5: key 'data/demo_0/{key}'.*{message}"):
        read_all(copy)


@pytest.mark.parametrize("name", ["task_name", "state_id", "num_samples", "tries"])
def test_a_missing_attribute_is_named(copy, name):
    with h5py.File(copy, "r+") as file:
        del file["data/demo_0"].attrs[name]
    with pytest.raises(DataError, match=rf"copy.hdf5: key 'data/demo_0' lacks the attribute '{name}'"):
        open_demos(copy)


def test_another_version_and_a_lost_demonstration_are_said(copy):
    with h5py.File(copy, "r+") as file:
        del file["data/demo_3"]
    with pytest.raises(DataError, match="holds 5 demonstrations; expected 6"):
        open_demos(copy)
    with h5py.File(copy, "r+") as file:
        file["data"].attrs["format_version"] = 99
    with pytest.raises(DataError, match="format_version 99; this version of ript reads 1 and 2"):
        open_demos(copy)
    with h5py.File(copy, "r+") as file:
        del file["data"].attrs["spec"]
        file["data"].attrs["format_version"] = 1
        file["data"].attrs["num_demos"] = 5
    with pytest.raises(DataError, match="lacks the attribute 'spec'"):
        open_demos(copy)


def test_a_file_of_before_whose_proprioception_had_no_names_is_read(copy):
    with h5py.File(copy, "r+") as file:
        spec = json.loads(file["data"].attrs["spec"])
        assert spec.pop("proprio") == {"position": 2}
        file["data"].attrs["spec"] = json.dumps(spec | {"proprio_dim": 2})
        file["data"].attrs["format_version"] = 1
    demos = open_demos(copy)
    assert demos.spec.proprio == {"proprio": 2}
    assert all(demo.proprio.shape[1] == 2 for demo in demos.demos())


@pytest.mark.parametrize("spec", ["[]", '{"cameras": 3}', '{"more": 1, "cameras": {}}'])
def test_a_description_of_the_simulator_that_is_none_is_named(copy, spec):
    with h5py.File(copy, "r+") as file:
        file["data"].attrs["spec"] = spec
    with pytest.raises(DataError, match=r"copy\.hdf5: key 'data', attribute 'spec'"):
        open_demos(copy)


@pytest.mark.parametrize(
    ("where", "name", "value", "says"),
    [
        ("data", "num_demos", 0, "holds"),
        ("data", "num_demos", "four", "attribute 'num_demos': expected a whole number, got 'four'"),
        ("data", "spec", "{", "attribute 'spec' is no JSON"),
        ("data", "settings", "[]", r"attribute 'settings': expected a JSON object, got '\[\]'"),
        ("data", "versions", "null", "attribute 'versions': expected a JSON object"),
        ("data", "format_version", np.array([1, 1]), "format_version"),
        ("data/demo_0", "tries", "many", "key 'data/demo_0', attribute 'tries': expected a whole number"),
        ("data/demo_0", "num_samples", np.array([3, 4]), "key 'data/demo_0', attribute 'num_samples'"),
    ],
)
def test_an_attribute_that_is_damaged_is_named_with_file_and_key(copy, where, name, value, says):
    with h5py.File(copy, "r+") as file:
        file[where].attrs[name] = value
    with pytest.raises(DataError, match=rf"copy\.hdf5: (key '{where}'|format_version)") as caught:
        open_demos(copy)
    assert re.search(says, str(caught.value))


def test_a_file_without_a_demonstration_is_refused(copy):
    with h5py.File(copy, "r+") as file:
        for name in list(file["data"]):
            del file["data"][name]
        file["data"].attrs["num_demos"] = 0
    with pytest.raises(DataError, match=r"copy\.hdf5: key 'data' holds no demonstration"):
        open_demos(copy)


def test_a_group_that_is_none_is_named(copy):
    with h5py.File(copy, "r+") as file:
        file["data"]["demo_x"] = h5py.SoftLink("/data/demo_0")
    with pytest.raises(DataError, match=r"copy\.hdf5: key 'data/demo_x': expected a number"):
        open_demos(copy)
    with h5py.File(copy, "r+") as file:
        del file["data/demo_x"], file["data/demo_0"]
        file["data/demo_0"] = h5py.ExternalLink("nowhere.hdf5", "/x")
    with pytest.raises(DataError, match=r"copy\.hdf5: key 'data/demo_0' cannot be read"):
        open_demos(copy)
