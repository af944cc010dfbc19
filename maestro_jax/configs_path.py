"""Where the shipped gin files lie."""

from __future__ import annotations

import pathlib


def config_root() -> pathlib.Path:
    """The directory that holds `models/`, `objectives/`, `data/` and `runs/`.

    An installed wheel carries the files in `maestro_jax/configs`; a checkout, and an editable
    install of it, keeps them in `gin/` beside the package.
    """
    package = pathlib.Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "gin"
