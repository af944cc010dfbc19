"""Python modules under the names that they had in earlier checkouts, with a warning.

Scripts outside the repository import modules of the package. Those that have moved are found under
their earlier names until version 0.2. For gin files see `maestro_jax.gin_utils.renames`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

MODULES: dict[str, str] = {
    "maestro_jax.data.vocabularies": "maestro_jax.text.vocabularies",
    "maestro_jax.evaluation.normalizers": "maestro_jax.text.normalizers",
    "maestro_jax.evaluation.scores": "maestro_jax.scoring.metrics",
    **{
        f"maestro_jax.evaluation.{name}": f"maestro_jax.inference.{name}"
        for name in ("aligner", "language_models", "search_config", "segmentation", "transcriber")
    },
}
"""Modules, from the earlier to the present name."""


def word_scores(
    references: Sequence[str],
    hypotheses: Sequence[str],
    language: str = "",
    bootstrap_samples: int = 0,
) -> types.SimpleNamespace:
    """Returns `wer` and `cer`; use `maestro_jax.scoring.metrics.compute_score`."""
    return _scores(("wer", "cer"), references, hypotheses, language, bootstrap_samples)


def translation_scores(
    references: Sequence[str],
    hypotheses: Sequence[str],
    language: str = "en",
    bootstrap_samples: int = 0,
) -> types.SimpleNamespace:
    """Returns `bleu` and `chrf`; use `maestro_jax.scoring.metrics.compute_score`."""
    return _scores(("bleu", "chrf"), references, hypotheses, language, bootstrap_samples)


def _scores(
    names: Sequence[str],
    references: Sequence[str],
    hypotheses: Sequence[str],
    language: str,
    bootstrap_samples: int,
) -> types.SimpleNamespace:
    metrics = importlib.import_module("maestro_jax.scoring.metrics")
    scores = {
        name: metrics.compute_score(
            metrics.get_metric(name),
            references,
            hypotheses,
            language=language,
            bootstrap_samples=bootstrap_samples,
        ).value
        for name in names
    }
    return types.SimpleNamespace(**scores)


class TokenVocabulary:
    """Reads a vocabulary; use `maestro_jax.text.vocabularies.load_vocabulary`."""

    @staticmethod
    def load(path: str) -> Any:
        """Returns the vocabulary in a file."""
        return importlib.import_module("maestro_jax.text.vocabularies").load_vocabulary(path)


_OWN: dict[str, dict[str, Any]] = {
    "maestro_jax.data.vocabularies": {"TokenVocabulary": TokenVocabulary},
    "maestro_jax.evaluation.scores": {
        "translation_scores": translation_scores,
        "word_scores": word_scores,
    },
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that are nowhere else: it is asked last."""

    def find_spec(
        self, fullname: str, path: Any = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns the specification of a module with an earlier name; None for any other."""
        if fullname not in MODULES:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        """Returns None: an ordinary module will do."""
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        """Fills the module with the names of the present one."""
        name = module.__name__
        warnings.warn(
            f"{name} is now {MODULES[name]}; the earlier name ends with version 0.2",
            DeprecationWarning,
            stacklevel=2,
        )
        present = importlib.import_module(MODULES[name])
        names = {key: value for key, value in vars(present).items() if not key.startswith("__")}
        module.__dict__.update(names)
        module.__dict__.update(_OWN.get(name, {}))


def install() -> None:
    """Lets imports find modules under their earlier names."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
