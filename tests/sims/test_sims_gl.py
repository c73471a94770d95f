"""Each case needs a process of its own: MuJoCo chooses its renderer once, when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ript.core import interpreter
from ript.core.capacity import RENDER_GPU
from ript.sims.mujoco import gl
from tests.packages import needs

LOOK = """
from ript.core.errors import RiptError
from ript.sims.registry import make_simulator
try:
    simulator = make_simulator("metaworld/reach-v3")
    state = simulator.initial_states(1)[0]
    print("physics works")
    simulator.reset(state)
    print("renders")
except RiptError as error:
    print(type(error).__name__, error)
"""


def run(code: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"} | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(
        command, env=clean | environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the backends of Linux")
def test_without_egl_and_osmesa_physics_works_and_a_look_says_what_to_install():
    if os.path.exists("/usr/lib/x86_64-linux-gnu/libOSMesa.so.8"):
        pytest.skip("OSMesa is installed here, so that rendering falls back to it")
    done = run(LOOK, __EGL_VENDOR_LIBRARY_FILENAMES="/dev/null")
    assert done.stdout.startswith("physics works\nRendererMissing"), done
    assert "libegl1" in done.stdout and "libosmesa6" in done.stdout
    assert done.stderr == ""


def test_a_wrong_backend_in_the_environment_is_named():
    done = run(LOOK, MUJOCO_GL="nonsense")
    assert done.stdout.startswith("RendererMissing MUJOCO_GL=nonsense"), done


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"MUJOCO_GL": "disable"}, "MUJOCO_GL=disable forbids pictures, and egl works here: unset MUJOCO_GL"),
        ({gl.EGL_DEVICE: ""}, f"{gl.EGL_DEVICE} is empty: unset it"),
        ({gl.EGL_DEVICE: "99"}, f"{gl.EGL_DEVICE} is 99: unset it"),
    ],
)
@pytest.mark.skipif(not gl.egl_works(), reason="no EGL here")
def test_a_variable_that_forbids_pictures_is_named_and_nothing_else_is_printed(
    variables: dict[str, str], says: str
) -> None:
    done = run(LOOK, **variables)
    assert done.stdout.startswith("physics works\nRendererMissing") and says in done.stdout, done
    assert "libegl1" not in done.stdout and done.stderr == ""


def test_the_renderer_leaves_no_noise_when_the_interpreter_exits_and_files_in_the_current_folder_are_no_modules(
    tmp_path,
):
    """A package that Meta-World imports starts a Python of its own, which is not known where Python is embedded."""
    for name in ("types", "struct", "ctypes"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('mine')", encoding="utf-8")
    done = run("import sys; sys.executable = ''\n" + LOOK, cwd=tmp_path)
    assert done.stdout == "physics works\nrenders\n" and done.stderr == "", done


@pytest.mark.parametrize("package", ["metaworld", "mujoco"])
def test_a_missing_package_is_named_with_the_extra_to_install(package):
    done = run(f"import sys; sys.modules[{package!r}] = None\n" + LOOK)
    assert done.stdout.startswith("DependencyMissing") and "ript[metaworld]" in done.stdout, done


def test_nothing_heavy_is_imported_with_the_registry():
    code = (
        "import sys, ript.sims.registry; print([m for m in ('mujoco', 'metaworld', 'gymnasium') if m in sys.modules])"
    )
    assert run(code).stdout == "[]\n"


GYM = """
import gymnasium.envs.mujoco
from ript.sims.registry import make_simulator
with make_simulator("gym/InvertedPendulum-v5", success="reward>=1", cameras=("default", "render")) as simulator:
    pictures = simulator.reset(simulator.initial_states(1)[0]).images  # ours, and the environment's own
    print("renders", all(picture.std() > 5 for picture in pictures.values()))
"""


def test_packages_of_known_environments_print_nothing():
    pytest.importorskip("gymnasium_robotics")
    done = run("from ript.sims.registry import make_simulator; make_simulator('gym/FetchReach-v4').close()")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done


def test_a_gymnasium_environment_renders_without_a_window_system_although_mujoco_was_imported_before():
    done = run(GYM, DISPLAY="", WAYLAND_DISPLAY="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "renders True\n", ""), done


TRITON = """
from pathlib import Path
maps = Path("/proc/self/maps").read_text()
print("after" if "libEGL" in maps or "LLVM" in maps else "before")
"""


@pytest.mark.parametrize("look", ["gl.egl_works()", "gl.import_mujoco(); gl.make_current()"])
def test_triton_is_loaded_before_mesa_whose_llvm_would_take_the_place_of_its_own(tmp_path: Path, look: str) -> None:
    (tmp_path / "triton.py").write_text(TRITON)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run(f"from ript.sims.mujoco import gl; {look}; import triton", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (0, "before\n"), done


@pytest.mark.parametrize(
    ("gpu", "device", "chosen"),
    [
        ("1", None, "2"),
        ("0", None, "0"),
        ("7", None, None),
        ("GPU-8932f937", None, None),
        ("", None, None),
        ("1", "5", "5"),
    ],
)
def test_simulators_render_on_the_gpu_that_is_named_by_egls_number_of_it(
    gpu: str, device: str | None, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of EGL's devices here the first is CUDA's 0, the second none of CUDA's, the third its 1."""
    monkeypatch.setenv(RENDER_GPU, gpu)
    monkeypatch.setenv(gl.EGL_DEVICE, device or "")
    if device is None:
        monkeypatch.delenv(gl.EGL_DEVICE)
    gl.choose_gpu(lambda: [0, None, 1])
    assert os.environ.get(gl.EGL_DEVICE) == chosen


@needs("mujoco")
def test_a_gpu_that_egl_does_not_know_is_passed_over_and_what_works_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gl.EGL_DEVICE, raising=False)
    monkeypatch.setenv(RENDER_GPU, "99")
    assert interpreter.in_a_child("ript.sims.mujoco.gl:require_renderer", "") is None
