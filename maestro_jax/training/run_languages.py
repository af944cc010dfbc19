"""Which languages a run knows, by which ids; kept in its model directory."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.files import as_path
from maestro_jax.text.languages import LANGUAGES_FILE, LanguageTable, load_languages
from maestro_jax.training.saved_checkpoints import find_checkpoint

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

_FIELDS = ("languages", "source_languages", "adapter_languages")


def language_capacity(model: Any) -> int | None:
    """Returns how many languages a model has room for; None if it is told none.

    Args:
        model: A Linen module; the fields of it and of its parts are read.
    """
    sizes: list[int] = []

    def visit(module: Any) -> None:
        if not dataclasses.is_dataclass(module):
            return
        for field in dataclasses.fields(module):
            value = getattr(module, field.name, None)
            if field.name in _FIELDS and isinstance(value, int) and value:
                sizes.append(value)
            elif field.name not in ("parent", "name"):
                visit(value)

    visit(model)
    return min(sizes, default=None)


def run_languages(run: TrainRun, model_dir: epath.PathLike | None = None) -> LanguageTable:
    """Returns the table of languages of a run.

    It begins as the table of the model directory if training continues, else as that of
    `init_from`, else with `TrainRun.languages`, else with `maestro_jax.text.languages.LANGUAGES`.
    The languages of the run's tasks that it lacks come last.

    Args:
        run: The run.
        model_dir: Its model directory, if there is one.

    Raises:
        UserError: The model has no room for all languages, `TrainRun.languages` gives other ids
            than what the run begins with, or a task is unknown.
    """
    from maestro_jax.data.task_registry import mixture_languages

    # Codes in any form are welcome here.
    declared = LanguageTable(()).extended(run.languages)
    table = declared if run.languages else LanguageTable()
    before, owner = _before(run, model_dir)
    if before is not None:
        if run.languages and not (table.starts_with(before) or before.starts_with(table)):
            raise UserError(
                f"TrainRun.languages gives other ids than {owner}, which begins with "
                f"{' '.join(before.codes[:5])}; leave it out, or begin with the same languages."
            )
        if len(before) > len(table) or not run.languages:
            table = before
    mixtures = [run.streams[name].mixture for name in run.used_streams]
    # Held-out pairs may be of another mixture.
    if run.diagnostics.every and run.diagnostics.mixture:
        mixtures.append(run.diagnostics.mixture)
    table = table.extended(mixture_languages(mixtures))
    capacity = language_capacity(run.model)
    if capacity is not None and len(table) > capacity:
        raise UserError(
            f"the run has {len(table)} languages, but the model has room for {capacity}: pass "
            f"--gin.LANGUAGES={len(table)}, or name only those that it needs in TrainRun.languages."
        )
    return table


def _before(run: TrainRun, model_dir: epath.PathLike | None) -> tuple[LanguageTable | None, str]:
    """Returns the table that a run goes on with, and whose it is."""
    if model_dir is not None:
        directory = as_path(model_dir)
        if (directory / LANGUAGES_FILE).exists() or (directory / "checkpoints").exists():
            return load_languages(directory), str(model_dir)
    if run.init_from is not None:
        return load_languages(find_checkpoint(run.init_from).parent.parent), run.init_from
    return None, ""
