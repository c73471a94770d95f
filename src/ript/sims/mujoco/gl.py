"""Chooses an OpenGL backend before MuJoCo is imported, and keeps the process's one off-screen context.

MuJoCo reads the environment variable MUJOCO_GL once, when it is first imported, and that import fails where the
backend's library is not installed. So the library is looked for first: EGL, else OSMesa, else none (physics works
without).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ript.core.capacity import RENDER_GPU
from ript.core.errors import DependencyMissing, RendererMissing
from ript.core.interpreter import importing

EGL_DEVICE = "MUJOCO_EGL_DEVICE_ID"
"""Variable by which MuJoCo is told which of EGL's devices to render on."""
_INSTALL = (
    "install EGL with Mesa's software renderer (Debian/Ubuntu: apt-get install libegl1 libgl1-mesa-dri) "
    "or OSMesa (apt-get install libosmesa6), or set MUJOCO_GL to a backend that works here"
)


def before_mesa() -> None:
    """Load Triton, which CUDA builds of torch have, where it is installed, before Mesa is.

    Both bring an LLVM of their own. Mesa makes the symbols of its one visible to what is loaded later, and Triton,
    which torch imports with the first optimiser, would take them for its own: a segmentation fault.
    """
    if sys.platform == "linux" and "triton" not in sys.modules and importlib.util.find_spec("triton") is not None:
        with contextlib.suppress(Exception):  # of another Python, or broken: torch does without it then
            importlib.import_module("triton")


class _Egl:
    """EGL's devices, asked without PyOpenGL, so that the other backend stays possible.

    Raises:
        OSError, AttributeError: there is no EGL, or one that knows no devices.
    """

    def __init__(self) -> None:
        before_mesa()
        self._egl = ctypes.CDLL("libEGL.so.1")
        self._egl.eglGetProcAddress.restype = ctypes.c_void_p
        query: Any = self._function("eglQueryDevicesEXT", ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        found, count = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
        self.devices = list(found[: count.value]) if query(16, found, ctypes.byref(count)) else []

    def _function(self, name: str, *arguments: Any, returns: Any = ctypes.c_uint) -> Any:
        address = self._egl.eglGetProcAddress(name.encode())
        if not address:
            raise AttributeError(name)
        return ctypes.CFUNCTYPE(returns, *arguments)(address)

    def initialises(self, device: Any) -> bool:
        """Whether something can be drawn on a device."""
        pointer = ctypes.c_void_p
        display: Any = self._function("eglGetPlatformDisplayEXT", ctypes.c_uint, pointer, pointer, returns=pointer)
        self._egl.eglInitialize.argtypes = [pointer] * 3
        egl_platform_device = 0x313F  # EGL_PLATFORM_DEVICE_EXT
        found = display(egl_platform_device, device, None)
        return bool(found and self._egl.eglInitialize(found, None, None))

    def cuda_number(self, device: Any) -> int | None:
        """CUDA's number of a device, as CUDA counts them where none is hidden; None of what is no GPU of NVIDIA's."""
        ask: Any = self._function("eglQueryDeviceAttribEXT", ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        number, egl_cuda_device = ctypes.c_ssize_t(-1), 0x323A  # EGL_CUDA_DEVICE_NV
        return number.value if ask(device, egl_cuda_device, ctypes.byref(number)) else None


def egl_works() -> bool:
    """Whether some EGL device can be initialised."""
    try:
        egl = _Egl()
        return any(egl.initialises(device) for device in egl.devices)
    except (OSError, AttributeError):
        return False


def choose_gpu(numbers: Callable[[], Sequence[int | None]] | None = None) -> None:
    """Where a GPU is named to render on (`RENDER_GPU`), let MuJoCo render on it, unless somebody has told it where. EGL
    counts GPUs in an order of its own; where it does not say which is which, MuJoCo takes the first that works.

    Args:
        numbers: CUDA's number of each of EGL's devices, in their order.
    """
    gpu = os.environ.get(RENDER_GPU, "")
    if not gpu.isdigit() or EGL_DEVICE in os.environ:
        return
    try:
        found = _cuda_numbers() if numbers is None else numbers()
    except (OSError, AttributeError):
        return
    if int(gpu) in found:
        os.environ[EGL_DEVICE] = str(found.index(int(gpu)))


def _cuda_numbers() -> list[int | None]:
    egl = _Egl()
    return [egl.cuda_number(device) for device in egl.devices]


def osmesa_works() -> bool:
    """Whether the OSMesa library can be loaded; asked after `egl_works`, so `before_mesa` has been called."""
    for name in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        with contextlib.suppress(OSError):
            return bool(ctypes.CDLL(name))
    return False


def choose_backend() -> str:
    """The backend for this machine: "egl", "osmesa" or "disable"."""
    if egl_works():
        return "egl"
    return "osmesa" if osmesa_works() else "disable"


def import_mujoco(install: str = "pip install mujoco") -> ModuleType:
    """`import mujoco`, after choosing a backend that works, unless MUJOCO_GL names another than EGL.

    Args:
        install: what to do where the package is not installed, for the error.

    Raises:
        DependencyMissing: the package is not installed.
        RendererMissing: MUJOCO_GL names a backend that does not work here.
    """
    choose_gpu()
    loaded = sys.modules.get("mujoco")
    if loaded is not None:
        if sys.platform == "linux" and not os.environ.get("MUJOCO_GL") and not _windows() and egl_works():
            os.environ["MUJOCO_GL"] = "egl"  # for what asks later than MuJoCo does, as Gymnasium's renderer
        return loaded
    # Mesa's software renderer starts a thread for every core unless told not to; small pictures are faster without.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if sys.platform == "linux" and os.environ.get("MUJOCO_GL", "") in ("", "egl"):
        os.environ["MUJOCO_GL"] = choose_backend()
    backend = os.environ.get("MUJOCO_GL")
    try:
        with importing():
            return importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        if error.name == "mujoco":
            raise DependencyMissing(f"mujoco is not installed: {install}") from error
        raise RendererMissing(f"MUJOCO_GL={backend} needs a package: {error}") from error
    except Exception as error:  # PyOpenGL raises AttributeError, ImportError and others where a library is missing
        raise RendererMissing(f"MUJOCO_GL={backend} does not work here ({error}); {_INSTALL}") from error


def _windows() -> bool:
    """Whether there is a window system, which MuJoCo's own default needs."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


_context: Any = None
_before_close: list[Callable[[], None]] = []


def before_close(callback: Callable[[], None]) -> None:
    """Call this before the context is closed (at the latest when the interpreter exits)."""
    if callback not in _before_close:
        _before_close.append(callback)


def make_current() -> None:
    """Create (once) and make current the OpenGL context that all renderers of this process share.

    Raises:
        RendererMissing: no backend could create one.
    """
    global _context
    if _context is None:
        _context = _create_context()
        atexit.register(close_context)
    _context.make_current()


def _create_context() -> Any:
    before_mesa()
    mujoco, backend = import_mujoco(), os.environ.get("MUJOCO_GL", "")
    if backend == "disable":
        if (works := choose_backend()) != "disable":
            raise RendererMissing(f"MUJOCO_GL=disable forbids pictures, and {works} works here: unset MUJOCO_GL")
        raise RendererMissing(f"no OpenGL renderer works here: neither EGL nor OSMesa was found; {_INSTALL}")
    try:
        if backend == "egl":  # which MuJoCo has not chosen itself where it was imported first
            own = importlib.import_module("mujoco.egl").GLContext
            # MuJoCo's looks for `_context` when it is thrown away half made, too.
            return type(own.__name__, (own,), {"_context": None})(64, 64)
        return mujoco.GLContext(64, 64)
    except Exception as error:  # each backend has exceptions of its own
        raise renderer_missing(error) from error


def require_renderer(_: str = "") -> None:
    """Raise `RendererMissing` where this process can have no OpenGL context, `DependencyMissing` without MuJoCo."""
    make_current()
    close_context()


def renderer_missing(error: Exception) -> RendererMissing:
    """The error to raise where a third-party package could not start a renderer."""
    what = " ".join(str(error).split())[:200]
    device = os.environ.get(EGL_DEVICE)
    remedy = (
        f"{EGL_DEVICE} is {device or 'empty'}: unset it, or choose a device that is there"
        if device is not None
        else _INSTALL
    )
    return RendererMissing(
        f"no OpenGL renderer could be started (MUJOCO_GL={os.environ.get('MUJOCO_GL')}: {what}); {remedy}"
    )


def close_context() -> None:
    """Free the shared context, after the renderers that live in it."""
    global _context
    if _context is not None:
        for callback in _before_close:
            callback()
        _context.free()
        _context = None
