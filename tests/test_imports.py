"""The import direction of ARCHITECTURE.md, held by parsing every module."""

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest
from code_words import said

import ript

PACKAGE = Path(ript.__file__).parent

UPSTAIRS = (
    "run.settings",
    "run.resuming",
    "run.cards",
    "run.start",
    "run.rl_progress",
    "run.measure",
    "run.states",
    "run.collecting",
)
"""Modules that stand on the floor of training, above the rest of their rooms: they need a configuration, the builder,
evaluation or another room. ARCHITECTURE.md says why each does."""
FLOORS: tuple[set[str], ...] = (
    {"core"},
    {"config", "learn", "rollout", "sims", "policies", "demos", "run"},  # meet in core, not in each other
    {"build", "report"},
    {"sft", "rl", "evaluation", *UPSTAIRS},
    {"studies", "bench"},
    {"cli"},
    {"__main__", "__init__"},
)
"""What a unit imports lies on a lower floor."""
STORY = FLOORS[3]
"""Training and evaluation call each other, but never in a ring: a test of its own holds that."""
PUBLIC = {"errors": "core", "types": "core"}
"""Modules below `ript` by whose names those of a unit are public: for imports they are of that unit."""
RANK = {unit: rank for rank, floor in enumerate(FLOORS) for unit in floor}

HOMES = {  # heavy or optional packages, and the only units that may import them
    "mujoco": {"sims"},
    "metaworld": {"sims", "bench"},
    "gymnasium": {"sims", "bench"},
    "h5py": {"demos"},
    "av": {"run"},
    "matplotlib": {"report"},
    "PIL": {"run", "policies"},
    "simplejpeg": {"policies"},
    "jinja2": {"report"},
    "wandb": {"run"},
    "tensorboard": {"run"},
    "tokenizers": {"policies"},
    "ray": {"rollout"},
}


def unit_of(path: Path) -> str:
    """What of `RANK` a file belongs to; of a file that belongs to nothing there, the module or package below `ript`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ranked(parts) or parts[0]


def ranked(parts: Sequence[str]) -> str | None:
    """The longest beginning of a dotted name below `ript` that has a rank."""
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    if names and names[-1] in PUBLIC:
        return PUBLIC[names[-1]]
    return next((name for name in names if name in RANK), None)


def imported(tree: ast.AST, package: str) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of every import of a module in `package`, function bodies included.

    `from a import b` gives "a.b": whether b is a module or a name in one, it belongs to the same unit.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                found.append((node.lineno, str(argument.value)))
    return found


def violations(source: str, path: Path) -> list[str]:
    """What a file imports that it must not."""
    unit = unit_of(path)
    package = ".".join(["ript", *path.relative_to(PACKAGE).parts[:-1]])
    wrong = []
    for line, name in imported(ast.parse(source), package):
        root, *rest = name.split(".")
        where = f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        if root in HOMES and unit.partition(".")[0] not in HOMES[root]:
            wrong.append(f"{where}: only {', '.join(sorted(HOMES[root]))} may")
        if root != "ript":
            continue
        other = ranked(rest) or "__init__"
        if other == "__init__" and name != "ript.__version__":
            wrong.append(f"{where}: import it from the module that defines it")
        elif other not in (unit, "__init__") and RANK[other] >= RANK[unit] and not {unit, other} <= STORY:
            wrong.append(f"{where}: {other} is not below {unit}")
    return wrong


FILES = sorted(PACKAGE.rglob("*.py"))


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    return {
        ".".join(["ript", *p.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): p for p in FILES
    }


def dependencies(source: str, name: str, known: Collection[str], is_package: bool = False) -> set[str]:
    """The modules of `known` that a module imports: anywhere, under TYPE_CHECKING and in functions too."""
    found = set()
    for _, target in imported(ast.parse(source), name if is_package else name.rpartition(".")[0]):
        while target not in known and "." in target:
            target = target.rpartition(".")[0]
        found |= {target} & set(known) - {name}
    return found


def cycle(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Modules that import each other in a ring, the first one again at the end; empty when there is none."""
    done: set[str] = set()

    def walk(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if ring := walk(target, [*above, name]):
                return ring
        done.add(name)
        return []

    return next((ring for name in sorted(graph) if (ring := walk(name, []))), [])


def test_every_unit_has_its_place_on_one_of_seven_floors():
    assert {unit_of(path) for path in FILES} == set(RANK)
    assert len(FLOORS) == 7 and len(RANK) == sum(map(len, FLOORS))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    assert violations(path.read_text(), path) == []


@pytest.mark.parametrize(
    "file, line, complaint",
    [
        ("learn/batch.py", "from ript.rollout.sampling import collect", "rollout is not below learn"),
        ("learn/batch.py", "def f():\n    import ript.sims.toy", "sims is not below learn"),
        ("learn/batch.py", "from ..report import page", "report is not below learn"),
        ("learn/batch.py", "from ript.config.sections import Config", "config is not below learn"),
        ("learn/batch.py", "from ript import config", "config is not below learn"),
        ("learn/batch.py", "from ript import load_policy", "from the module that defines it"),
        ("core/types.py", "from ript.learn.batch import f", "learn is not below core"),
        ("build.py", "from ript.rl import train_rl", "rl is not below build"),
        ("rl.py", "import mujoco", "only sims may"),
        ("run/folder.py", "from ript.report import page", "report is not below run"),
        ("report/page.py", "from ript.build import load_policy", "build is not below report"),
        ("evaluation.py", "from ript.studies.run import run_study", "studies is not below evaluation"),
        ("bench/rollout.py", "from ript.studies import bases", "studies is not below bench"),
        ("policies/quest/stages.py", "from ript.learn import stages", "learn is not below policies"),
        ("run/folder.py", "from ript.run import settings", "run.settings is not below run"),
        ("core/types.py", "from ript.errors import RiptError; import ript.rl", "rl is not below core"),
        ("policies/folder.py", "importlib.import_module('h5py')", "only demos may"),
    ],
)
def test_an_import_the_wrong_way_would_be_found(file, line, complaint):
    (found,) = violations(line, PACKAGE / file)
    assert found.endswith(complaint)


def test_no_module_imports_one_that_imports_it_not_even_for_its_types():
    known = modules()
    graph = {
        name: dependencies(path.read_text(encoding="utf-8"), name, known, path.name == "__init__.py")
        for name, path in known.items()
    }
    assert sum(map(len, graph.values())) > 200
    assert cycle(graph) == []


def test_a_cycle_that_exists_for_a_type_checker_alone_would_be_found():
    sources = {
        "ript.rollout.engine": "if TYPE_CHECKING:\n    from ript.rollout.recorder import Recorder",
        "ript.rollout.recorder": "from . import stream",
        "ript.rollout.stream": "def f():\n    from ript.rollout.engine import Outcome",
        "ript.core.errors": "from ript.core.errors import WorkerError",
    }
    graph = {name: dependencies(source, name, sources) for name, source in sources.items()}
    ring = ["ript.rollout.engine", "ript.rollout.recorder", "ript.rollout.stream", "ript.rollout.engine"]
    assert cycle(graph) == ring
    assert cycle(graph | {"ript.rollout.stream": set()}) == []


def test_imports_of_lower_floors_and_of_the_own_package_are_allowed():
    for line in (
        "from ript.core.types import Group",
        "from ript.learn.advantage import f",
        "import numpy",
        "from . import x",
    ):
        assert violations(line, PACKAGE / "learn" / "batch.py") == []


SUITES = sorted(folder.parent.name for folder in PACKAGE.glob("sims/*/suite.py"))
MAY_SAY = ("config/recipes.py", "studies/catalogue.py")
"""Files that may name suites as they like: recipes and the paper's studies are about tasks that there are."""
SAY_SUITES = {
    "config/defaults.py": {"metaworld"},
    "policies/quest/options.py": {"libero"},
    "policies/openvla_oft/checkpoint.py": {"libero"},
    "policies/openvla_oft/numbers.py": {"libero", "libero_", "libero_10"},
}
"""What else code outside a suite's folder says of suites; ARCHITECTURE.md says why. Everything else takes what
`core.registry` finds."""


def naming(word: str, source: str) -> list[str]:
    """What of a file's code says a word, alone or as a part of a name ("metaworld", "Meta-World", "for_metaworld")."""
    pattern = re.compile(rf"(?<![a-z]){'-?'.join(word)}(?![a-z])", re.IGNORECASE)
    return [text for text in said(source) if pattern.search(text)]


def test_no_file_outside_a_suites_folder_says_its_name_in_code() -> None:
    found: dict[str, set[str]] = {}
    for path in FILES:
        where = path.relative_to(PACKAGE).as_posix()
        for suite in SUITES:
            if where not in MAY_SAY and PACKAGE / "sims" / suite not in path.parents:
                found.setdefault(where, set()).update(naming(suite, path.read_text()))
    assert {where: texts for where, texts in found.items() if texts} == SAY_SUITES


def test_a_suite_that_is_named_in_code_would_be_found_and_in_a_docstring_would_not() -> None:
    assert naming("metaworld", "from ript.sims.metaworld import tasks") and naming("metaworld", "f(suite='metaworld')")
    assert naming("metaworld", "def for_metaworld(): ...") and naming("metaworld", "x = f'{a} of Meta-World'")
    assert naming("metaworld", "p.add_argument(help='a task of metaworld')")
    assert not naming("metaworld", "command('check', examples='  ript check metaworld/push')")
    assert not naming("metaworld", '"""Meta-World."""\nx = 1  # metaworld') and not naming("gym", "import gymnasium")
    assert {"metaworld", "toy", "gym"} <= set(SUITES)


@pytest.mark.parametrize(
    "module", ["ript", "ript.cli.main", "ript.config.recipes", "ript.core.types", "ript.sims.registry"]
)
def test_importing_it_stays_light(module):
    heavy = ["torch", "mujoco", "metaworld", "gymnasium", "h5py", "av", "matplotlib", "jinja2", "wandb", "ray"]
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_public_names_are_few_sorted_and_all_there():
    assert ript.__all__ == sorted(ript.__all__)
    assert len(ript.__all__) <= 25
    for name in ript.__all__:
        assert getattr(ript, name) is not None
