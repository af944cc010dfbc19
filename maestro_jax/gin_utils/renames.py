"""Names that earlier versions used in gin files, and what they are called now.

A model directory keeps the gin text of its run, so files of earlier versions must still be read.
An import of a module that has moved is read as an import of the new module under the old name.
"""

from __future__ import annotations

import re

MOVED_MODULES: dict[str, str] = {
    "maestro_jax.data.augmentation": "maestro_jax.augmentation_config",
    "maestro_jax.data.streams": "maestro_jax.batches",
    **{
        f"maestro_jax.modules.{name}": f"maestro_jax.layers.{name}"
        for name in (
            "attention",
            "conformer",
            "dot_product_attention",
            "dropout",
            "fourier",
            "languages",
            "masking",
            "partitioned",
            "positions",
            "rematerialisation",
        )
    },
    **{
        f"maestro_jax.{package}.{earlier}": f"maestro_jax.layers.{name}"
        for package in ("layers", "modules")
        for earlier, name in {
            "adapters": "languages",
            "attention_kernels": "dot_product_attention",
            "group_norm": "normalization",
            "language_embedding": "languages",
            "lightweight_conv": "convolution",
            "randomness": "dropout",
        }.items()
        if (package, earlier) != ("modules", "language_embedding")
    },
    "maestro_jax.modules.gaussian_upsampling": "maestro_jax.modules.resampler",
    "maestro_jax.modules.random_projection": "maestro_jax.modules.quantizer",
    "maestro_jax.modules.subword_durations": "maestro_jax.modules.duration",
    "maestro_jax.objectives.text_side": "maestro_jax.objectives.text_losses",
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

MOVED_MACROS: dict[str, str] = {
    "LONGEST_HOLD": "MAX_HOLD_STEPS",
    "PAIRED_FROM": "PAIRED_START_STEP",
    "TEXT_FRAMES": "MAX_TEXT_FRAMES",
    "TEXT_FROM": "TEXT_START_STEP",
    "TRANSLATION_FROM": "TRANSLATION_START_STEP",
}
"""Macros, from the earlier to the present name."""

MOVED_PARAMETERS: dict[str, str] = {
    "augment_paired_from": "augment_paired_start_step",
    "begins": "start_step",
    "longest_hold": "max_hold_steps",
    "paired_from": "paired_start_step",
    "text_frames": "max_text_frames",
    "text_from": "text_start_step",
    "translation_from": "translation_start_step",
}
"""Parameters of objectives and of their curriculum, from the earlier to the present name."""

MOVED_FUNCTIONS: dict[str, str] = {"curriculum.in_order": "curriculum.paper_curriculum"}
"""Functions as gin files refer to them, from the earlier to the present name."""

_FROM = re.compile(r"^from[ \t]+([\w.]+)[ \t]+import[ \t]+(\w+)(?:[ \t]+as[ \t]+(\w+))?", re.M)
_MACRO = re.compile(rf"(?<![\w./])({'|'.join(MOVED_MACROS)})(?![\w./])")
_PARAMETER = re.compile(rf"^([ \t]*(?:[\w/.]+\.)?)({'|'.join(MOVED_PARAMETERS)})(?=[ \t]*=)", re.M)
_FUNCTION = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, MOVED_FUNCTIONS))})(?!\w)")
_IMPORT = re.compile(r"^import[ \t]+([\w.]+)(?:[ \t]+as[ \t]+(\w+))?", re.M)


def with_present_names(text: str) -> str:
    """Rewrites imports of moved modules, and renamed macros, parameters and functions.

    All lines stay where they are.

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

    text = _IMPORT.sub(imported, _FROM.sub(imported_from, text))
    text = _MACRO.sub(lambda match: MOVED_MACROS[match[1]], text)
    text = _PARAMETER.sub(lambda match: match[1] + MOVED_PARAMETERS[match[2]], text)
    return _FUNCTION.sub(lambda match: MOVED_FUNCTIONS[match[1]], text)


def _alias(module: str, name: str) -> str:
    package, _, module_name = module.rpartition(".")
    suffix = "" if module_name == name else f" as {name}"
    return f"from {package} import {module_name}{suffix}"
