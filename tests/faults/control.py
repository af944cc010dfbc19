"""Faults of storage and of the clock that can be turned on and off while a program runs.

`faulty_system.c` is preloaded into the program and looks at a file that both map. Its three areas
are directories: the model directory, the compilation cache, and the data.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pathlib
import shutil
import subprocess

AREAS = ("model", "cache", "data")
CONTROL, PATHS = "FAULTS_CONTROL", "FAULTS_PATHS"


class Area(ctypes.Structure):
    """Faults of a directory; `struct area` of the library."""

    _fields_ = [
        ("write_error", ctypes.c_int32),
        ("read_error", ctypes.c_int32),
        ("delay_ms", ctypes.c_int32),
        ("stall_writes", ctypes.c_int32),
        ("stall_reads", ctypes.c_int32),
    ]


class _Layout(ctypes.Structure):
    _fields_ = [
        ("areas", Area * len(AREAS)),
        ("pace_ms", ctypes.c_int32),
        ("clock_s", ctypes.c_int64),
        ("progress", ctypes.c_int64),
    ]


class Control:
    """The mapped file.

    Args:
        path: The file, which is created where it does not exist.
    """

    def __init__(self, path: pathlib.Path | str) -> None:
        self.path = pathlib.Path(path)
        size = ctypes.sizeof(_Layout)
        if not self.path.exists():
            self.path.write_bytes(bytes(size))
        with self.path.open("r+b") as file:
            self._layout = _Layout.from_buffer(mmap.mmap(file.fileno(), size))

    def area(self, name: str) -> Area:
        """Returns the faults of ``model``, ``cache`` or ``data``, which may be set."""
        return self._layout.areas[AREAS.index(name)]

    def heal(self) -> None:
        """Turns off every fault of storage; a clock that has jumped stays where it is."""
        for area in self._layout.areas:
            ctypes.memset(ctypes.byref(area), 0, ctypes.sizeof(area))

    @property
    def pace(self) -> float:
        """Seconds that the driver rests before each batch."""
        return self._layout.pace_ms / 1000

    @pace.setter
    def pace(self, seconds: float) -> None:
        self._layout.pace_ms = round(1000 * seconds)

    @property
    def clock(self) -> int:
        """Seconds by which the wall clock is wrong."""
        return self._layout.clock_s

    @clock.setter
    def clock(self, seconds: int) -> None:
        self._layout.clock_s = seconds

    @property
    def progress(self) -> int:
        """Steps for which the driver has asked for a batch, in its present process."""
        return self._layout.progress

    @progress.setter
    def progress(self, step: int) -> None:
        self._layout.progress = step


def build_library(directory: pathlib.Path) -> pathlib.Path | None:
    """Compiles the library into a directory; returns None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source = pathlib.Path(__file__).with_name("faulty_system.c")
    library = directory / "faulty_system.so"
    command = [compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return library


def environment(
    library: pathlib.Path, control: Control, paths: dict[str, pathlib.Path]
) -> dict[str, str]:
    """Returns the variables with which a program meets the faults."""
    return {
        "LD_PRELOAD": os.fspath(library),
        CONTROL: os.fspath(control.path),
        PATHS: ":".join(os.fspath(paths[name]) for name in AREAS),
    }
