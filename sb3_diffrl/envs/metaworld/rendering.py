"""Rendering without a display."""

from __future__ import annotations

import ctypes.util
import os
import sys


def choose_backend() -> None:
    """
    Set ``MUJOCO_GL`` where it is unset and there is no display: to EGL, or else to OSMesa.

    :raises RuntimeError: where neither is installed
    """
    displayed = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if os.environ.get("MUJOCO_GL") or displayed or not sys.platform.startswith("linux"):
        return
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            return
    raise RuntimeError(
        "render_mode: there is no display, and neither EGL nor OSMesa to render without one; on "
        "Debian and Ubuntu: apt-get install libegl1, or libosmesa6"
    )
