"""What `ript doctor` asks of child processes: each answers with a JSON value, and crashes or hangs alone.

A probe really imports, embeds, encodes or draws: a broken binary package or graphics driver can crash or hang only it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ript.core import interpreter
from ript.core.errors import DependencyMissing, RiptError

GIB = 2**30
TIME_LIMIT = 120.0
"""Seconds for one child process; a first import on a cold disk can take tens of them."""

IMPORT_NAMES = {"pillow": "PIL"}
"""Distributions whose module has another name."""
IN_ITS_PLACE = " is imported in its place"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a child process answered (a JSON value), or why it did not."""

    value: dict | None
    problem: str = ""


def run_child(
    probe: str,
    argument: object = None,
    *,
    env: Mapping[str, str] | None = None,
    time_limit: float = TIME_LIMIT,
) -> Outcome:
    """Run `PROBES[probe](argument)` in a Python of its own and wait for its answer, at most `time_limit` seconds.

    It finds the packages that this process finds, whatever lies in the current folder.
    """
    try:
        done = subprocess.run(
            interpreter.command("from ript.cli.probes import _answer; _answer()", probe, json.dumps(argument)),
            cwd=interpreter.folder_to_start_in(),
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=time_limit,
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, f"gave no answer in {time_limit:.0f} s")
    except OSError as error:
        return Outcome(None, f"could not be started: {error}")
    except DependencyMissing as error:
        return Outcome(None, str(error))
    for line in reversed(done.stdout.splitlines()):
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
            return Outcome(answer.get("value"), answer.get("problem", ""))
    if done.returncode < 0:
        return Outcome(None, f"crashed with {_signal_name(-done.returncode)}")
    return Outcome(None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])


def imported(names: Sequence[str]) -> Outcome:
    """What importing packages in a child process comes to; without MUJOCO_GL, with which the renderer is tried: a value
    that does not work is no fault of a package."""
    return run_child("packages", names, env={name: value for name, value in os.environ.items() if name != "MUJOCO_GL"})


def _answer() -> None:
    """The child's side: one line of JSON, the value or what was raised; what libraries say at the end is not heard."""
    answer: dict[str, object] = {}
    try:
        answer["value"] = PROBES[sys.argv[1]](json.loads(sys.argv[2]))
    except BaseException as error:  # SystemExit included, of a module that was never meant to be imported
        answer["problem"] = in_words(error)
    print("\n" + json.dumps(answer), flush=True)
    os._exit(0)


def in_words(error: BaseException) -> str:
    """The first line of what an error says, and what it is unless it is ours."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, RiptError) else f"{type(error).__name__}: {text}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def probe_packages(names: Sequence[str]) -> dict:
    """Import each package; and what torch says of the GPU. Runs in a child process."""
    import importlib

    problems: dict[str, str] = {}
    for name in names:
        module = IMPORT_NAMES.get(name, name.replace("-", "_"))
        try:
            if other := _in_its_place(name, module):
                problems[name] = f"{other}{IN_ITS_PLACE}"
            else:
                with interpreter.importing():
                    importlib.import_module(module)
        except BaseException as error:  # a broken package may raise anything, SystemExit included
            problems[name] = in_words(error)
    gpus, silent = [], ""
    if "torch" in names and "torch" not in problems:
        import torch

        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            gpus.append(f"{properties.name} ({properties.total_memory / GIB:.0f} GiB)")
            try:
                torch.ones(2, device=f"cuda:{i}").sum().item()
            except Exception as error:  # too old a driver or card is seen and counted all the same
                silent = silent or in_words(error)
    return {"problems": problems, "gpus": gpus, "silent": silent}


def _in_its_place(name: str, module: str) -> str:
    """The file that takes the place of an installed distribution's module; empty when it is that distribution's."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or distribution.read_text("direct_url.json"):  # editable: anywhere
        return ""
    home = Path(str(distribution.locate_file(""))).resolve()
    return "" if Path(spec.origin).resolve().is_relative_to(home) else spec.origin


SCENE = """
<mujoco><worldbody>
  <light pos="0 -1 3"/>
  <geom type="plane" size="2 2 0.1" rgba="0.2 0.3 0.4 1"/>
  <geom type="box" size="0.3 0.3 0.3" pos="0 0 0.3" rgba="0.9 0.2 0.1 1"/>
</worldbody></mujoco>
"""


def probe_render(_: object) -> dict:
    """Draw a red box as the simulators draw. Runs in a child process."""
    import time

    from ript.sims.mujoco import gl
    from ript.sims.mujoco.rendering import CameraView, ModelRenderer

    mujoco = gl.import_mujoco()
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    view = CameraView(position=(0.0, -2.0, 1.0), target=(0.0, 0.0, 0.3), fovy=45.0)
    renderer = ModelRenderer(model, {"eye": view}, (64, 64), coarse=True)
    for _ in range(5):  # the first compiles shaders
        began = time.perf_counter()
        frame = renderer.draw(data, model.body_pos.copy(), model.site_pos.copy())["eye"].astype(int)
        seconds = time.perf_counter() - began
    renderer.close()
    red = int(((frame[..., 0] > 90) & (frame[..., 0] > 2 * frame[..., 2])).sum())
    return {"backend": os.environ.get("MUJOCO_GL") or "default", "milliseconds": 1000 * seconds, "red_pixels": red}


def probe_language(model: str) -> dict:
    """Embed a sentence as the commands do, without fetching anything. Runs in a child process."""
    from ript.policies.language import embed

    embed(["a sentence"], model)
    return {}


def probe_encoder(_: object) -> dict:
    """Encode a video as the commands do. Runs in a child process."""
    import numpy as np

    from ript.run.video import encode, require_encoder

    encode(np.zeros((2, 16, 16, 3), np.uint8))
    return {"codec": require_encoder()}


def probe_suite(name: str) -> dict:
    """What a suite tries of its simulators. Runs in a child process."""
    from ript.core.registry import suites

    tried = suites.get(name).probe
    return {"found": tried() if tried is not None else "nothing to try"}


PROBES: dict[str, Callable] = {
    "packages": probe_packages,
    "language": probe_language,
    "encoder": probe_encoder,
    "render": probe_render,
    "suite": probe_suite,
}
