"""Chooses an OpenGL backend before MuJoCo is imported, and keeps the process's one off-screen context.

MuJoCo reads the environment variable MUJOCO_GL once, when it is first imported, and that import fails where the
backend's library is not installed. So the library is looked for first: EGL, else OSMesa, else none (physics works
without).
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ript.errors import DependencyMissing, RendererMissing

_INSTALL = (
    "install EGL with Mesa's software renderer (Debian/Ubuntu: apt-get install libegl1 libgl1-mesa-dri) "
    "or OSMesa (apt-get install libosmesa6), or set MUJOCO_GL to a backend that works here"
)


def _loads(*names: str) -> bool:
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def egl_works() -> bool:
    """Whether some EGL device can be initialised, asked without PyOpenGL, so that the other backend stays possible."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        query, display = (egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT"))
    except (OSError, AttributeError):
        return False
    if not query or not display:
        return False
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query)
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(display)
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
    if not query_devices(16, devices, ctypes.byref(count)):
        return False
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    egl_platform_device = 0x313F  # EGL_PLATFORM_DEVICE_EXT
    for device in devices[: count.value]:
        found = get_display(egl_platform_device, device, None)
        if found and egl.eglInitialize(found, None, None):
            return True
    return False


def osmesa_works() -> bool:
    return _loads("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")


def choose_backend() -> str:
    """ "egl", "osmesa" or "disable" for this machine."""
    if egl_works():
        return "egl"
    return "osmesa" if osmesa_works() else "disable"


def import_mujoco() -> ModuleType:
    """`import mujoco`, with MUJOCO_GL set first where the user has not.

    Raises:
        DependencyMissing: the package is not installed.
        RendererMissing: MUJOCO_GL names a backend that is not installed.
    """
    loaded = sys.modules.get("mujoco")
    if loaded is not None:
        return loaded
    # Mesa's software renderer starts a thread for every core unless told not to; small pictures are faster without.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if sys.platform == "linux" and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = choose_backend()
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise RendererMissing(f"MUJOCO_GL={os.environ.get('MUJOCO_GL')}: {error}; {_INSTALL}") from error
        raise DependencyMissing('mujoco is not installed: pip install "ript[metaworld]"') from error
    except Exception as error:  # PyOpenGL raises AttributeError, ImportError and others where a library is missing
        raise RendererMissing(
            f"MUJOCO_GL={os.environ.get('MUJOCO_GL')} does not work here: {error}; {_INSTALL}"
        ) from error


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
    mujoco = import_mujoco()
    problems = []
    if hasattr(mujoco, "GLContext"):
        try:
            return mujoco.GLContext(64, 64)
        except Exception as error:  # each backend has its own exception types
            problems.append(f"{os.environ.get('MUJOCO_GL', 'default')}: {error}")
    else:
        problems.append(f"MUJOCO_GL={os.environ.get('MUJOCO_GL')}")
    for backend in ("egl", "osmesa"):
        try:
            return importlib.import_module(f"mujoco.{backend}").GLContext(64, 64)
        except Exception as error:
            problems.append(f"{backend}: {error}")
    raise RendererMissing(f"no OpenGL renderer could be started ({'; '.join(problems)}); {_INSTALL}")


def close_context() -> None:
    """Free the shared context, after the renderers that live in it."""
    global _context
    if _context is not None:
        for callback in _before_close:
            callback()
        _context.free()
        _context = None
