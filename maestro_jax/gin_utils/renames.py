"""Names that earlier versions used in gin files, and what they are called now.

A model directory keeps the gin text of its run, so files of earlier versions must still be read.
An import of a module that has moved is read as an import of the new module under the old name.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import IO

MOVED_MODULES: dict[str, str] = {
    "maestro_jax.data.augmentation": "maestro_jax.augmentation_config",
    "maestro_jax.data.streams": "maestro_jax.batches",
    **{
        f"maestro_jax.modules.{name}": f"maestro_jax.layers.{name}"
        for name in (
            "adapters",
            "attention",
            "attention_kernels",
            "conformer",
            "dot_product_attention",
            "dropout",
            "fourier",
            "group_norm",
            "lightweight_conv",
            "masking",
            "partitioned",
            "positions",
            "randomness",
            "rematerialisation",
        )
    },
    "maestro_jax.modules.languages": "maestro_jax.layers.language_embedding",
    **{
        f"maestro_jax.evaluation.{name}": f"maestro_jax.inference.{name}"
        for name in ("aligner", "language_models", "search_config", "segmentation", "transcriber")
    },
    **{
        f"maestro_jax.tasks.{corpus}_tasks": "maestro_jax.tasks.speech_tasks"
        for corpus in (
            *("babel", "common_voice", "covost2", "fleurs", "libri_light", "librispeech"),
            *("mls", "speechstew", "voxpopuli"),
        )
    },
}
"""Modules whose classes gin files may name, from the earlier to the present name."""

_FROM = re.compile(r"^from[ \t]+([\w.]+)[ \t]+import[ \t]+(\w+)(?:[ \t]+as[ \t]+(\w+))?", re.M)
_IMPORT = re.compile(r"^import[ \t]+([\w.]+)(?:[ \t]+as[ \t]+(\w+))?", re.M)


def with_present_names(text: str) -> str:
    """Rewrites the imports of moved modules; all lines stay where they are.

    Args:
        text: The content of a gin file of any version.

    Returns:
        The same text, with `from old import x` as `from new import y as x`.
    """

    def imported_from(match: re.Match[str]) -> str:
        package, name, alias = match.groups()
        moved = MOVED_MODULES.get(f"{package}.{name}")
        return _alias(moved, alias or name) if moved else match[0]

    def imported(match: re.Match[str]) -> str:
        moved = MOVED_MODULES.get(match[1])
        return _alias(moved, match[2]) if moved and match[2] else match[0]

    return _IMPORT.sub(imported, _FROM.sub(imported_from, text))


def _alias(module: str, name: str) -> str:
    package, _, module_name = module.rpartition(".")
    suffix = "" if module_name == name else f" as {name}"
    return f"from {package} import {module_name}{suffix}"


def opened(path: str, opener: Callable[[str], IO[str]] = open) -> IO[str]:
    """Opens a gin file for gin, with the present names in it."""
    with opener(path) as file:
        stream = io.StringIO(with_present_names(file.read()))
    stream.name = path  # Gin puts it into its errors.
    return stream
