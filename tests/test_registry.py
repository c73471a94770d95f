"""Suites and kinds of policies are found by name, in folders and in installed packages, and imported one at a time."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import h5py
import pytest

from ript.cli.main import main
from ript.config.sections import policy_options
from ript.core import registry
from ript.core.errors import ConfigError, DependencyMissing, UnknownNameError
from ript.core.plugins import Suite
from ript.core.registry import Registry
from ript.core.types import Task
from ript.demos.collect import collect_demos
from ript.sims.registry import make_simulator
from ript.sims.toy.suite import SUITE as TOY

RECORD = """
    from dataclasses import replace
    from ript.sims.toy.suite import SUITE as TOY
    SUITE = replace(TOY, name="{name}")
"""


def package(
    place: Path, distribution: str, name: str, source: str, points: str | None = None, group: str = "test.suites"
) -> None:
    """An installed package with one module and one entry point, as pip leaves it."""
    module = f"module_of_{distribution}"
    (place / f"{module}.py").write_text(dedent(source).format(name=name))
    info = place / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{points or name} = {module}:SUITE\n")


def folder(place: Path, name: str, source: str) -> None:
    home = place / "rooms" / name
    home.mkdir(parents=True)
    (home / "__init__.py").touch()
    (home / "suite.py").write_text(dedent(source).format(name=name))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "__init__.py").touch()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("rooms", "module_of_")):
            del sys.modules[name]


@pytest.fixture
def suites(place: Path) -> Registry[Suite]:
    return Registry(
        "suite",
        Suite,
        lambda suite: suite.name,
        entry_points="test.suites",
        package="rooms",
        module="suite",
        attribute="SUITE",
    )


def test_folders_and_packages_are_found_without_being_imported_and_one_alone_when_asked_for(place, suites) -> None:
    folder(place, "north", RECORD)
    folder(place, "broken", "raise RuntimeError('imported')")
    (place / "rooms" / "no_suite").mkdir()
    package(place, "southern", "south", RECORD)
    package(place, "western", "west", "import not_there_at_all")
    assert suites.names() == ("broken", "north", "south", "west")
    assert not [name for name in sys.modules if name.startswith(("rooms.", "module_of_"))]
    assert suites.get("south").name == "south" and suites.get("north").name == "north"
    assert "module_of_western" not in sys.modules and "rooms.broken.suite" not in sys.modules
    assert suites.get("north") is suites.get("north")


def test_an_unknown_name_suggests_the_nearest(place, suites) -> None:
    folder(place, "north", RECORD)
    with pytest.raises(UnknownNameError, match=r"suite 'nroth': did you mean north\? Otherwise install the package"):
        suites.get("nroth")
    with pytest.raises(UnknownNameError, match=r"unknown suite 'y': known: north; install the package that brings it"):
        suites.get("y")


def test_what_fails_on_import_is_named_with_the_cause_and_the_others_work(place, suites) -> None:
    folder(place, "north", RECORD)
    package(place, "western", "west", "import not_there_at_all")
    with pytest.raises(DependencyMissing, match=r"suite .west. \(module_of_western:SUITE of package western\).*there"):
        suites.get("west")
    found, broken = suites.all()
    assert set(found) == {"north"} and set(broken) == {"west"}


def test_what_ends_the_program_on_import_is_named_and_the_others_work(place, suites, monkeypatch, capsys) -> None:
    folder(place, "north", RECORD)
    package(place, "western", "west", "raise SystemExit(5)")
    with pytest.raises(DependencyMissing, match=r"'west' .*western.*ends the program when it is import.*SystemExit: 5"):
        suites.get("west")
    found, broken = suites.all()
    assert set(found) == {"north"} and set(broken) == {"west"}
    package(place, "real", "quitter", "raise SystemExit(5)", group="ript.suites")
    assert main(["tasks", "toy"]) == 0 and "toy/reach" in capsys.readouterr().out
    package(place, "killed", "killed", "raise SystemExit(143)")
    with pytest.raises(SystemExit):  # a signal that arrives while something is imported
        suites.get("killed")


def test_a_keyboard_interrupt_that_nobody_pressed_is_the_packages_own(place, suites) -> None:
    handler = signal.getsignal(signal.SIGINT)
    package(place, "western", "west", "raise KeyboardInterrupt")
    with pytest.raises(DependencyMissing, match=r"'west' .*package western.*ends the program .*KeyboardInterrupt\)"):
        suites.get("west")
    package(place, "southern", "south", "import signal; signal.raise_signal(signal.SIGINT)")
    with pytest.raises(KeyboardInterrupt):
        suites.get("south")
    assert signal.getsignal(signal.SIGINT) is handler


def test_two_packages_that_claim_one_name_are_refused_by_their_names_and_the_others_work(place, suites) -> None:
    folder(place, "north", RECORD)
    package(place, "southern", "south", RECORD)
    package(place, "other", "south", RECORD)
    package(place, "third", "north", RECORD)
    with pytest.raises(ConfigError, match=r"claimed by .* of package (southern|other) and by .* of package"):
        suites.get("south")
    with pytest.raises(ConfigError, match=r"'north' is claimed by rooms.north.suite and by .* of package third"):
        suites.get("north")
    folder(place, "east", RECORD)
    assert suites.get("east").name == "east"


@pytest.mark.parametrize(
    ("source", "got"),
    [("SUITE = 3", "got 3"), (RECORD.replace("{name}", "nowhere"), "got one named 'nowhere'"), ("", "no attribute")],
)
def test_what_is_no_record_of_that_name_is_refused(place, suites, source: str, got: str) -> None:
    package(place, "southern", "south", source)
    with pytest.raises((ConfigError, DependencyMissing), match=f"'south' .*{got}"):
        suites.get("south")


def test_a_script_registers_a_record_but_not_under_a_name_that_is_taken(place, suites) -> None:
    folder(place, "toy", RECORD)
    with pytest.raises(ConfigError, match=r"suite 'toy' is there already.*rooms.toy.suite"):
        suites.register(TOY)
    with pytest.raises(ConfigError, match="expected a Suite"):
        suites.register("toy")
    mine = Suite(**{**vars(TOY), "name": "mine"})
    assert suites.register(mine) is mine and suites.get("mine") is mine and "mine" in suites.names()
    suites.unregister("mine")
    assert "mine" not in suites.names()


@pytest.mark.parametrize(
    ("field", "given", "says"),
    [
        (
            "tasks=lambda: 1 / 0",
            "tasks",
            r"tasks raised ZeroDivisionError: division .*module_of_western.py, line 4\)",
        ),
        ("tasks=lambda: ['reach']", "tasks", r"tasks returned \['reach'\]; expected a tuple of Task"),
        ("tasks=lambda: None", "tasks", "tasks returned None; expected a tuple of Task"),
        ("options_of=lambda spec: spec.nothing", "options_of", "options_of raised AttributeError: 'NoneType'"),
        ("available=lambda: {{}}['x']", "available", "available raised KeyError: 'x'"),
    ],
)
def test_what_the_record_of_a_package_raises_or_returns_is_said_to_be_its_own(
    place, suites, monkeypatch, field: str, given: str, says: str
) -> None:
    package(place, "western", "west", RECORD.replace("name=", f"{field}, name="))
    monkeypatch.setattr(suites, "_answers", {"tasks": Task})
    found = suites.get("west")
    with pytest.raises(ConfigError, match=f"suite 'west': {says}"):
        getattr(found, given)(*([None] if given == "options_of" else []))


def test_suites_that_cannot_be_used_are_named_where_tasks_are_listed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    listed = RECORD.replace("name=", "tasks=lambda: 1 / 0, name=")
    for distribution, name, source in (
        ("western", "west", "import not_there_at_all"),
        ("southern", "south", RECORD),
        ("other", "south", RECORD),
        ("third", "third", listed),
    ):
        package(place, distribution, name, source, group="ript.suites")
    monkeypatch.setattr(registry.suites, "_loaded", dict(registry.suites._loaded))
    assert main(["tasks"]) == 0
    said = capsys.readouterr()
    assert "toy/reach " in said.out
    told = said.err.splitlines()
    assert len(told) == 3 and all(line.startswith("not listed: simulator suite '") for line in told)
    assert "'west' (module_of_western:SUITE of package western) cannot be imported" in said.err
    assert "'south' is claimed by" in said.err and "tasks raised ZeroDivisionError" in said.err
    for name, why in (("west", "cannot be imported"), ("south", "is claimed by"), ("third/reach", "ZeroDivision")):
        assert main(["tasks", name]) in (1, 2)
        said = capsys.readouterr()
        assert why in said.err and "did you mean" not in said.err
    assert main(["tasks", "reach-centre"]) == 0 and not capsys.readouterr().err
    # and a suite whose list is broken is in nobody's way
    assert main(["eval", "--policy", "no/such/policy", "--tasks", "reach-centre"]) == 1
    assert "ZeroDivision" not in capsys.readouterr().err


def test_the_suites_of_this_package_are_folders() -> None:
    assert {"metaworld", "toy"} <= set(registry.suites.names())
    found, broken = registry.suites.all()
    assert not broken and all(found[name].tasks() for name in ("metaworld", "toy"))


@pytest.mark.parametrize("name", ["metaworld", "toy"])
def test_the_options_of_a_spec_are_those_that_gave_it(name: str) -> None:
    suite = registry.suites.get(name)
    options = suite.options(image_size=24)
    assert suite.spec is not None and suite.options_of(suite.spec(options)) == options


def test_oblong_pictures_come_back_from_a_spec() -> None:
    suite = registry.suites.get("metaworld")
    options = suite.options(image_size=[48, 64], cameras=("near", "front=corner2"), arm="hidden")
    assert suite.spec is not None
    spec = suite.spec(options)
    assert spec.cameras == {"near": (48, 64), "front": (48, 64)} and suite.options_of(spec) == options


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("toy", {"arm": "hidden"}, r"unknown field of sim \(suite toy\) 'arm'"),
        ("toy", {"image_size": 4}, r"sim.image_size: must be in 8..1024, got 4"),
        ("toy", {"suite": "metaworld"}, "sim.suite: 'metaworld' is not one of 'toy'"),
        ("metaworld", {"arm": "hiden"}, "sim.arm: 'hiden' is not one of 'boxes', 'mesh', 'hidden'"),
        ("metaworld", {"image_size": 4}, "sim.image_size: must be at least 8, got 4"),
        ("metaworld", {"cameras": ()}, "sim.cameras: at least one camera is needed"),
        ("metaworld", {"cameras": "side"}, "sim.cameras: expected a list of words, got 'side'"),
        ("metaworld", {"horizon": -1}, r"sim.horizon: must be in 0..1000000, got -1"),
        ("metaworld", {"horizon": 1.5}, "sim.horizon: expected int, got 1.5"),
    ],
)
def test_settings_that_a_suite_does_not_have_are_refused_by_name(name: str, given: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{says}"):
        registry.suites.get(name).options(**given)


@pytest.fixture
def of_a_missing_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has a policy and demonstrations, made with a suite whose package was uninstalled since."""
    monkeypatch.chdir(tmp_path)
    collect_demos(make_simulator, ["toy/reach-centre"], 1, "slider.hdf5", every=1)
    with h5py.File("slider.hdf5", "r+") as file:
        attributes = file["data"].attrs
        for name in [name for name, value in attributes.items() if isinstance(value, str)]:
            attributes[name] = attributes[name].replace('"toy"', '"slider"')
    options = policy_options("gaussian")
    with make_simulator("toy/reach-centre") as simulator:
        registry.kinds.get("gaussian").make(options, simulator.spec, 0, None).save_pretrained(Path("policy"))
    config = Path("policy/config.json")
    config.write_text(config.read_text().replace('"toy"', '"slider"'))


@pytest.mark.parametrize(
    "command",
    [
        "eval --policy policy --tasks stop-at-mark",
        "sft --recipe practice --sim.suite=slider --tasks stop-at-mark --demos slider.hdf5 --out run",
        "sft --recipe practice --tasks stop-at-mark --demos slider.hdf5 --out run",
        "sft --recipe practice --tasks stop-at-mark --demos other.hdf5 --base policy --out run",
        "rl --recipe practice --policy policy --tasks slider/stop-at-mark --out run",
        "rl --recipe practice --policy policy --tasks stop-at-mark --out run",
        "demos verify slider.hdf5",
        "doctor --suite slider",
    ],
)
def test_a_suite_that_is_missing_is_named_before_any_task_with_what_to_install(
    of_a_missing_suite: None, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    said = "did you mean libero? Otherwise install the package that brings it (an entry point of ript.suites)"
    assert f"unknown simulator suite 'slider': {said}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["tasks slider", "tasks slider/stop-at-mark", "check slider/stop-at-mark"])
def test_what_may_be_a_missing_suite_is_said_to_be_one_beside_what_is_like_it(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    assert "nstall the package that brings a suite 'slider'" in capsys.readouterr().err
