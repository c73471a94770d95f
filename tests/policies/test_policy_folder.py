"""Policy folders: what is written is what is read; anything else is a `PolicyError` that names it."""

import ast
import errno
import json
import os
import pickle
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from disks import as_ordinary_user, modes, open_to_all, umask
from policy_fixtures import SENTENCES, generators, make_observation, make_policy
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import ript
from ript.config.sections import RolloutConfig
from ript.core.errors import PolicyError
from ript.core.files import atomic_folder
from ript.evaluation import evaluate
from ript.policies import folder as policy_folder
from ript.policies.loading import load_policy
from ript.policies.quest.policy import QuestPolicy

CARD = {"supervised training": {"tasks": "drawer, door", "seed": 3}, "measured": ["greedy 9/10", "sampled 8/10"]}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    policy = make_policy(temperature=0.6, top_k=4)
    policy.card.update(CARD)
    policy.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    document = json.loads((folder / "config.json").read_text())
    change(document)
    (folder / "config.json").write_text(json.dumps(document))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


# ---------------------------------------------------------------------- round trip


def test_a_policy_that_is_saved_and_loaded_is_equal_and_acts_alike(saved: Path) -> None:
    original, loaded = make_policy(temperature=0.6, top_k=4), load_policy(saved)
    assert loaded == original and loaded.card == CARD
    assert not any(module.training for module in loaded.modules())
    for sentence in SENTENCES:
        loaded.remember(sentence, original.embed([sentence])[0])
    ours, theirs = (p.act(make_observation(4), generators(4)) for p in (original, loaded))
    np.testing.assert_array_equal(ours.sample, theirs.sample)
    np.testing.assert_array_equal(ours.actions, theirs.actions)


def test_saving_twice_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    load_policy(saved).save_pretrained(tmp_path / "again" / "policy")
    assert contents(tmp_path / "again" / "policy") == contents(saved)


def test_a_folder_of_before_whose_proprioception_had_no_names_is_read(saved: Path) -> None:
    def as_before(document: dict) -> None:
        assert document["simulator"].pop("proprio") == {"hand": 2, "gripper": 1}
        document["simulator"]["proprio_dim"] = 3
        document["format"] = 1

    edit_config(saved, as_before)
    loaded, original = load_policy(saved), make_policy(temperature=0.6, top_k=4)
    assert loaded.simulator.proprio == {"proprio": 3}
    assert loaded.config == original.config
    loaded.check_simulator(original.simulator)


def test_a_policy_that_version_0_1_0_wrote_is_read_and_succeeds_as_often_as_it_did_there() -> None:
    folder = Path(__file__).parent / "of_0_1_0"  # recipe smoke, four iterations of ript 0.1.0, which measured 49 of 50
    result = evaluate(load_policy(folder), ["reach"], trials=50, greedy=True, rollout=RolloutConfig(workers=0))
    assert (result.tasks["reach"].successes, result.tasks["reach"].trials) == (49, 50)


def test_a_policy_with_one_weight_changed_in_its_last_bit_differs(saved: Path) -> None:
    original, changed = load_policy(saved), load_policy(saved)
    weight = changed.prior.head.weight
    with torch.no_grad():
        weight[3, 2] = torch.nextafter(weight[3, 2], torch.tensor(torch.inf))
    assert changed != original


@pytest.mark.parametrize("statistics", ["encoder.proprio_mean", "encoder.privileged_std"])
def test_statistics_travel_with_the_policy(tmp_path: Path, statistics: str) -> None:
    policy = make_policy(privileged_dim=2)
    policy.state_dict()[statistics].fill_(0.25)
    policy.save_pretrained(tmp_path / "p")
    assert (load_policy(tmp_path / "p").state_dict()[statistics] == 0.25).all()


def test_policies_of_other_settings_or_another_simulator_differ(saved: Path) -> None:
    policy = load_policy(saved)
    assert policy != policy.configured(temperature=0.5)
    edit_config(saved, lambda d: d["simulator"]["render"].update(arm="mesh"))
    assert load_policy(saved) != policy
    assert policy != "policy"


def test_the_model_card_has_hub_metadata_what_was_measured_and_how_to_load(saved: Path) -> None:
    text = (saved / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: ript\n") and "license" not in text
    for part in ("ript.load_policy(", "## Supervised training", "| tasks | drawer, door |", "- greedy 9/10"):
        assert part in text


def test_names_in_a_headline_of_the_model_card_keep_their_capitals() -> None:
    document = {"kind": "quest", "simulator": {"suite": "desk", "cameras": [], "action_dim": 2}}
    card = {"success, with Wilson 95 % intervals": {}, "after_minus before, with McNemar's exact test": {}}
    text = policy_folder.model_card(document | {"card": card})
    assert "## Success, with Wilson 95 % intervals\n" in text
    assert "## After minus before, with McNemar's exact test\n" in text


def test_embeddings_that_were_computed_are_not_saved_as_notice_says(tmp_path: Path) -> None:
    policy = make_policy(language_dim=384)
    policy._remembered.clear()
    policy.read(["open the drawer"])
    policy.save_pretrained(tmp_path / "policy")
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    notice = " ".join((Path(__file__).parents[2] / "NOTICE").read_text().split())
    assert "Policies saved by ript contain no embeddings but those that they were given" in notice


def test_the_model_card_is_the_same_under_whatever_name_it_is_written(saved: Path, tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "best") as temporary:  # as a run writes its policies
        load_policy(saved).save_pretrained(temporary)
    text = (tmp_path / "best" / "README.md").read_text()
    assert text == (saved / "README.md").read_text()
    assert "\n# quest policy for desk\n" in text and ".tmp" not in text and "best" not in text


@pytest.mark.parametrize("mask, file, folder", [(0o002, 0o664, 0o775), (0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_the_folder_and_its_files_have_the_modes_of_the_umask(
    tmp_path: Path, mask: int, file: int, folder: int
) -> None:
    policy = make_policy()
    policy.remember("open the drawer", torch.ones(policy.config.language_dim))
    with umask(mask):
        policy.save_pretrained(tmp_path / "policy")
    names = ["README.md", "config.json", "instructions.safetensors", "model.safetensors"]
    assert modes(tmp_path / "policy") == {".": folder} | dict.fromkeys(names, file)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "instructions.safetensors", "."])
def test_what_may_not_be_read_is_not_called_corrupt(saved: Path, name: str) -> None:
    open_to_all(saved)
    (saved / name).chmod(0)
    with as_ordinary_user(), pytest.raises(PolicyError, match=f"{saved / name} cannot be read: permission denied"):
        load_policy(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "instructions.safetensors"])
def test_a_pointer_of_git_lfs_instead_of_the_file_is_called_that(saved: Path, name: str) -> None:
    (saved / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n")
    with pytest.raises(PolicyError, match=f"{name} is a pointer of Git LFS.*git lfs pull"):
        load_policy(saved)


# ---------------------------------------------------------------------- folders that cannot be used


def write_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def cut(name: str, share: float) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * share))


def configured(**changes: object) -> Callable[[Path], object]:
    return lambda folder: edit_config(folder, lambda d: d["config"].update(changes))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "configuration cut short": (cut("config.json", 0.5), r"config\.json is not a policy's configuration"),
    "configuration of something else": (write_text("config.json", '{"a": 1}'), r"config\.json is not a policy's"),
    "configuration is a list": (write_text("config.json", "[1]"), r"config\.json is not a policy's configuration"),
    "configuration is not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\0"), r"config\.json is not a"),
    "weights cut short": (cut("model.safetensors", 0.7), r"model\.safetensors is corrupt or truncated"),
    "weights empty": (cut("model.safetensors", 0), r"model\.safetensors is corrupt or truncated"),
    "weights are text": (write_text("model.safetensors", "hello world " * 9), r"model\.safetensors is corrupt"),
    "another format": (
        lambda f: edit_config(f, lambda d: d.update(format=99)),
        "policy format 99; .* reads 1 and 2: use the ver",
    ),
    "another kind": (lambda f: edit_config(f, lambda d: d.update(kind="pi0")), "holds a 'pi0' policy, .* are: .*quest"),
    "no simulator": (lambda f: edit_config(f, lambda d: d.pop("simulator")), r"config\.json is corrupt: KeyError"),
    "simulator incomplete": (lambda f: edit_config(f, lambda d: d["simulator"].pop("suite")), r"config\.json is cor"),
    "no cameras": (lambda f: edit_config(f, lambda d: d["simulator"].update(cameras=[])), r"config\.json is corrupt"),
    "unknown field": (configured(widht=3), r"config\.json describes no policy .*widht.* did you mean width"),
    "impossible value": (configured(chunk=7), r"config\.json describes no policy .*multiple of downsample"),
    "value of another type": (configured(width="wide"), r"config\.json describes no policy"),
    "no layers' sizes": (configured(fsq_levels=None), r"config\.json describes no policy"),
    "cameras unlike the simulator's": (configured(cameras={"side": [8, 8]}), r"config\.json describes no pol.*side"),
    "other sizes": (
        configured(width=32),
        r"weights in .*policy do not fit: .*expected \[.*32.*\].*got .*16.*again",
    ),
    "a tensor missing": (
        lambda f: edit_weights(f, lambda w: w.pop("prior.head.bias")),
        r"prior\.head\.bias: missing in the file",
    ),
    "a tensor too many": (
        lambda f: edit_weights(f, lambda w: w.update(extra=torch.zeros(2))),
        "extra: not part of this policy",
    ),
    "a tensor of another shape": (
        lambda f: edit_weights(f, lambda w: w.update({"prior.head.bias": torch.zeros(8)})),
        r"prior\.head\.bias: expected \[9\] torch\.float32, got \[8\]",
    ),
    "a tensor of another type": (
        lambda f: edit_weights(f, lambda w: w.update({"prior.head.bias": torch.zeros(9, dtype=torch.float16)})),
        r"prior\.head\.bias: expected \[9\] torch\.float32, got \[9\] torch\.float16",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_folder_is_refused_by_name(saved: Path, damage: str) -> None:
    harm, message = DAMAGE[damage]
    harm(saved)
    with pytest.raises(PolicyError, match=message) as caught:
        load_policy(saved)
    assert str(saved) in str(caught.value)


def test_a_folder_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(PolicyError, match=f"no policy folder at {missing}"):
            load_policy(missing)
        with pytest.raises(PolicyError, match=f"no policy folder at {missing}"):
            QuestPolicy.from_pretrained(missing)


def test_a_run_folder_taken_for_a_policy_folder_is_told_apart(saved: Path) -> None:
    (saved.parent / "config.json").write_text('{"kind": "rl"}')
    with pytest.raises(PolicyError, match=f"model.safetensors is missing; did you mean {saved}\\?"):
        load_policy(saved.parent)


def test_many_misfits_are_summed_up(saved: Path) -> None:
    edit_weights(saved, lambda w: [w.pop(name) for name in list(w) if name.startswith("prior.")])
    with pytest.raises(PolicyError, match=r"\(and \d+ more\); the folder is damaged") as caught:
        load_policy(saved)
    assert str(caught.value).count("missing in the file") == 5


def test_another_kind_is_refused_by_the_class_too(saved: Path) -> None:
    edit_config(saved, lambda d: d.update(kind="pi0"))
    with pytest.raises(PolicyError, match="holds a 'pi0' policy, expected 'quest'"):
        QuestPolicy.from_pretrained(saved)


# ---------------------------------------------------------------------- writing


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_for_safetensors(tensors: object, path: Path) -> None:
    Path(path).write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def second_move_fails() -> Callable[[Path, Path], None]:
    moves: list[Path] = []
    replace = os.replace

    def move(source: Path, target: Path) -> None:
        moves.append(source)
        if len(moves) == 2:
            full_disk()
        replace(source, target)

    return move


@pytest.mark.parametrize("old", [True, False], ids=["over an old one", "new"])
@pytest.mark.parametrize("where", ["weights", "weights as OSError", "configuration"])
def test_a_full_disk_leaves_the_old_folder_and_nothing_half_written(
    saved: Path, monkeypatch: pytest.MonkeyPatch, where: str, old: bool
) -> None:
    place = saved if old else saved.with_name("new")
    before = contents(saved.parent)
    if where == "weights":
        monkeypatch.setattr(policy_folder, "save_file", full_disk_for_safetensors)
    elif where == "weights as OSError":
        monkeypatch.setattr(policy_folder, "save_file", full_disk)
    else:
        monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(PolicyError, match=f"cannot write {place}: the disk is full"):
        make_policy(seed=1).save_pretrained(place)
    assert contents(saved.parent) == before
    assert [path.name for path in saved.parent.iterdir()] == ["policy"]


def test_when_the_new_folder_cannot_take_its_place_the_old_one_comes_back(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(saved.parent)
    monkeypatch.setattr(os, "replace", second_move_fails())
    with pytest.raises(PolicyError, match="the disk is full"):
        make_policy(seed=1).save_pretrained(saved)
    assert contents(saved.parent) == before


def test_an_interrupt_while_saving_leaves_nothing_half_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(saved.parent)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(policy_folder, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_policy(seed=1).save_pretrained(saved)
    assert contents(saved.parent) == before and len(list(saved.parent.iterdir())) == 1


def test_a_parent_that_cannot_be_a_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PolicyError, match=f"cannot write {tmp_path}/file/policy: something of that name"):
        make_policy().save_pretrained(tmp_path / "file" / "policy")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_policy_is_saved_into_the_folder_that_one_is_in(saved: Path) -> None:
    with chdir(saved):
        make_policy(seed=1).save_pretrained(".")
        (saved / ".policy.0123abcd.tmp").mkdir()  # of a process that was killed while it did that
        load_policy(".").save_pretrained(".")
        assert load_policy(".") == make_policy(seed=1)
    assert [path.name for path in saved.parent.iterdir()] == ["policy"]


def test_saving_replaces_an_older_policy_whole(saved: Path) -> None:
    old = make_policy()
    more = {"stale": {"x": torch.zeros(1)}}
    policy_folder.save(saved, "quest", {}, old.simulator, old.weights(), {}, documents={"notes": {}}, **more)
    assert {"stale.safetensors", "notes.json"} < {path.name for path in saved.iterdir()}
    make_policy(seed=1).save_pretrained(saved)
    assert load_policy(saved) == make_policy(seed=1) and not (saved / "stale.safetensors").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["policy"]


@pytest.mark.parametrize("name", ["notes.json", "adapter_model.safetensors"])
def test_saving_does_not_delete_what_somebody_has_put_beside_a_policy(saved: Path, name: str) -> None:
    before = load_policy(saved)
    (saved / name).write_text("mine")
    with pytest.raises(PolicyError, match=rf"holds more than a policy \({name}\): choose another folder"):
        make_policy(seed=1).save_pretrained(saved)
    assert (saved / name).read_text() == "mine" and load_policy(saved) == before


# ---------------------------------------------------------------------- nothing is unpickled


def test_a_pickle_that_poses_as_weights_is_not_executed(saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").write_bytes(pickle.dumps(_Touches(tmp_path / "executed")))
    with pytest.raises(PolicyError, match="corrupt"):
        load_policy(saved)
    pickle.loads((saved / "model.safetensors").read_bytes())  # it is armed
    assert (tmp_path / "executed").exists()
    (tmp_path / "executed").unlink()
    torch.save({"a": torch.zeros(1)}, saved / "model.safetensors")
    with pytest.raises(PolicyError, match="corrupt"):
        load_policy(saved)
    assert not (tmp_path / "executed").exists()


class _Touches:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_no_file_is_ever_unpickled_by_the_source() -> None:
    """Messages between our own processes, and what a process put away for itself, are the only pickles; none comes from
    a file."""
    root = Path(ript.__file__).parent
    readers: set[str] = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name == "pickle.Unpickler" and "BytesIO" in ast.unparse(node):
                readers.add(str(path.relative_to(root)))
            elif name in ("torch.load", "pickle.load", "joblib.load") or name.endswith(("Unpickler", "read_pickle")):
                safe = {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") == "True"
                checked = "BytesIO" in ast.unparse(node) or path.parts[-2:] == ("policies", "pth.py")
                assert name == "torch.load" and safe and checked, f"{path}: {ast.unparse(node)}"
            elif name == "np.load":
                assert "allow_pickle=True" not in ast.unparse(node), f"{path}: {ast.unparse(node)}"
            elif name == "pickle.loads":
                readers.add(str(path.relative_to(root)))
    assert readers == {"core/child_server.py", "core/interpreter.py", "learn/ranks.py", "sims/gym/attributes.py"}
    assert len(list(root.rglob("*.py"))) > 40


def test_saving_a_policy_deletes_nothing_but_a_policy(tmp_path: Path) -> None:
    policy = make_policy()
    (tmp_path / "policies" / "other").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("keep")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "foreign" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "README.md").write_text("keep")
    (tmp_path / "lookalike").mkdir()
    (tmp_path / "lookalike" / "config.json").write_text('{"kind": "bert"}')
    (tmp_path / "lookalike" / "model.safetensors").write_bytes(b"weights")
    for name, message in (
        ("bare", "config.json is missing"),
        ("lookalike", "is not a policy's configuration: 'format'"),
        ("policies", r"holds more than a policy \(other\)"),
        ("notes.txt", "is a file"),
        ("foreign", "is not a policy's configuration"),
    ):
        with pytest.raises(PolicyError, match=message):
            policy.save_pretrained(tmp_path / name)
    assert (tmp_path / "policies" / "other").is_dir() and (tmp_path / "notes.txt").read_text() == "keep"
    policy.save_pretrained(tmp_path / "policy")
    policy.save_pretrained(tmp_path / "policy")
    (tmp_path / "empty").mkdir()
    policy.save_pretrained(tmp_path / "empty")
