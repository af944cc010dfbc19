"""Named suites: the test sets that papers report together, in their order and grouping.

A suite has a row per test set. Papers average over its rows; some suites have further rows, which
are scored where they are prepared and are in no published average. A part of a suite, chosen by
its languages, has an average of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maestro_jax.errors import UserError, near_misses
from maestro_jax.evaluation.predictions import Prediction
from maestro_jax.scoring.glm import Glm, GlmWordErrorRate
from maestro_jax.scoring.metrics import Kind, Metric
from maestro_jax.scoring.published import (
    COVOST,
    COVOST_GROUPS,
    SPEECHSTEW,
    SPEECHSTEW_ROWS,
    VOXPOPULI,
    VOXPOPULI_LANGUAGES,
    PublishedSystem,
)
from maestro_jax.text.languages import base_language, config_name, is_language

if TYPE_CHECKING:
    import seqio

_PAPERS = "of the papers"


@dataclasses.dataclass(frozen=True)
class SuiteRow:
    """A test set of a suite.

    Attributes:
        key: What `--languages` calls it: a language, or a test set of a suite in one language.
        name: Its row in tables.
        task: Name of its seqio task.
        averaged: Whether the papers' average is over it.
        telephone: Whether its error rate is by the rules for telephone conversations, see
            `maestro_jax.scoring.glm`.
    """

    key: str
    name: str
    task: str
    averaged: bool = True
    telephone: bool = False


@dataclasses.dataclass(frozen=True)
class Suite:
    """Test sets that are reported in one table.

    Attributes:
        name: What `--suite` calls it.
        title: Title of its table.
        kind: Kind of its tasks.
        rows: Its test sets, in the order of the table.
        groups: Averages besides the one over all, and the rows or languages of each.
        published: Scores of other systems on the split `test`.
        part_of: Number of rows that papers average over, if this is only a part of them; else 0.
        family: Beginning of the names of tasks of corpora that have any language; else empty.
    """

    name: str
    title: str
    kind: Kind
    rows: tuple[SuiteRow, ...]
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    published: tuple[PublishedSystem, ...] = ()
    part_of: int = 0
    family: str = ""

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the seqio tasks, in the order of the rows."""
        return tuple(row.task for row in self.rows)

    @property
    def row_names(self) -> dict[str, str]:
        """Names of the rows by task, in order, as `evaluate.score` takes them."""
        return {row.task: row.name for row in self.rows}

    def scorers(self, glm: Glm | None = None) -> dict[str, tuple[Metric, ...]]:
        """Returns the metrics of the rows that have rules of their own.

        Args:
            glm: Rules for telephone conversations; `default_glm` by default.
        """
        metric = GlmWordErrorRate(glm) if any(row.telephone for row in self.rows) else None
        return {row.name: (metric,) for row in self.rows if row.telephone and metric is not None}

    def beside(self, split: str) -> dict[str, Any]:
        """Returns what a `ScoreTable` of the suite shows beside the scores of a split.

        Numbers were published for `test` only; groups hold for all splits.
        """
        published = self.published if split == "test" else ()
        return {"groups": self.groups, "published": published, "part_of": self.part_of}

    def select(self, languages: Sequence[str]) -> Suite:
        """Returns the part of the suite with some languages, in the order of the suite.

        Args:
            languages: Keys of rows: `de`; also `de-en` or `de_en` of translations. The whole suite
                if there are none.

        Raises:
            UserError: The suite has no such language.
        """
        if not languages:
            return self
        rows, wanted = list(self.rows), set()
        keys = [row.key for row in rows]
        for language in languages:
            key = _key(language)
            # CoVoST-2 calls `sv` what Common Voice calls `sv-SE`.
            key = key if key in keys or self.family else base_language(key)
            if key not in keys and self.family and is_language(language):
                rows.append(SuiteRow(key, key, f"{self.family}_{key}"))
            elif key not in keys:
                raise UserError(
                    f"the suite {self.name} has no {language!r}; it has {', '.join(keys)}."
                    f"{near_misses(key, keys)}"
                )
            wanted.add(key)
        return dataclasses.replace(self, rows=tuple(rows))._only(wanted)

    def prepared(self, split: str, *, chosen: bool = False) -> Suite:
        """Returns the suite with the rows that the data root in force has.

        Rows beyond those that papers average over may be missing; a part of the suite that was
        chosen must be prepared as a whole.

        Args:
            split: Split of the tasks.
            chosen: Whether the user chose the rows.

        Raises:
            UserError: Other rows are not prepared, lack the split, or have no example in it.
        """
        missing: list[SuiteRow] = []
        for row, task in zip(self.rows, self.tasks(), strict=True):
            if split not in task.splits:
                raise UserError(
                    f"{row.task} of the suite {self.name} has no split {split!r}; it has "
                    f"{', '.join(task.splits)}."
                )
            is_ready = getattr(task.source, "is_ready", None)
            if is_ready is not None and not is_ready():
                missing.append(row)
            elif task.source.num_input_examples(split) == 0:
                raise UserError(
                    f"the test set {row.name} of the suite {self.name} is empty: {row.task} has no "
                    f"example in its split {split!r}; prepare it again."
                )
        present = [row for row in self.rows if row not in missing]
        required = [row for row in missing if row.averaged or chosen]
        if required or not present:
            names = ", ".join(row.key for row in required or missing)
            rest = ",".join(row.key for row in present)
            part = f", or score the part that is there: --languages {rest}" if rest else ""
            remedy = _preparation(self.tasks(required or missing))
            raise UserError(f"the suite {self.name} is not prepared in {names}; {remedy}{part}.")
        return self._only({row.key for row in present}) if missing else self

    def tasks(self, rows: Sequence[SuiteRow] | None = None) -> list[seqio.Task]:
        """Returns the seqio tasks of the suite, or of some of its rows."""
        from maestro_jax.data.task_registry import get_task_or_mixture

        return [get_task_or_mixture(row.task) for row in (self.rows if rows is None else rows)]

    def _only(self, keys: Collection[str]) -> Suite:
        rows = tuple(row for row in self.rows if row.key in keys)
        averaged = [row for row in self.rows if row.averaged and not self.family]
        kept = [row for row in averaged if row in rows]
        part_of = self.part_of or (len(averaged) if len(kept) < len(averaged) else 0)
        groups = {
            name: members
            for name, members in self.groups.items()
            # The group of the papers is that average itself where there is no other row.
            if name != _PAPERS or (len(kept) < len(rows) and not part_of)
        }
        return dataclasses.replace(self, rows=rows, groups=groups, part_of=part_of)


def _preparation(tasks: Sequence[seqio.Task]) -> str:
    """Returns how to prepare tasks, with one command a corpus."""
    commands: dict[str, dict[str, None]] = {}
    for task in tasks:
        command, option, languages = getattr(task.source, "remedy", "").partition(" --languages ")
        commands.setdefault(command + option, {})[languages] = None
    texts = [f"`{command}{','.join(languages)}`" for command, languages in commands.items()]
    return f"run {' and '.join(texts)}" if all(commands) else "prepare them"


def _key(language: str) -> str:
    """Returns the key of a language or test set that a user writes in any form."""
    name = language.strip()
    spoken, _, written = name.replace("-", "_").partition("_")
    if written == "en" and is_language(spoken):
        return config_name(spoken)
    return config_name(name) if is_language(name) else name.lower()


def _voxpopuli() -> Suite:
    languages = dict.fromkeys(VOXPOPULI_LANGUAGES, True) | {"et": False, "lt": False}
    rows = [
        SuiteRow(language, language, f"voxpopuli_paired_{language}", averaged)
        for language, averaged in languages.items()
    ]
    groups = {_PAPERS: VOXPOPULI_LANGUAGES}
    return Suite("voxpopuli", "VoxPopuli", "asr", tuple(rows), groups, VOXPOPULI)


def _covost2() -> Suite:
    rows = [
        SuiteRow(language, f"{language}-en", f"covost2_st_{language}_en")
        for languages in COVOST_GROUPS.values()
        for language in languages
    ]
    title = "CoVoST-2 into English"
    return Suite("covost2", title, "st", tuple(rows), COVOST_GROUPS, COVOST)


def _covost2_of_text() -> Suite:
    """Returns the same directions as translations of text, of which nothing was published."""
    suite = _covost2()
    rows = [
        dataclasses.replace(row, task=row.task.replace("_st_", "_mt_", 1)) for row in suite.rows
    ]
    return dataclasses.replace(suite, kind="mt", rows=tuple(rows), published=())


def _speechstew() -> Suite:
    keys = (
        *("librispeech_clean", "librispeech_other", "ami_ihm", "ami_sdm1", "tedlium"),
        *("switchboard", "callhome", "common_voice"),
    )
    tasks = (
        *("librispeech_paired_en", "librispeech_paired_en_other", "ami_paired_en"),
        *("ami_paired_en_distant", "tedlium_paired_en", "switchboard_fisher_paired_en"),
        *("switchboard_fisher_paired_en_callhome", "common_voice_paired_en"),
    )
    rows = [
        SuiteRow(key, name, task, telephone=key in ("switchboard", "callhome"))
        for key, name, task in zip(keys, SPEECHSTEW_ROWS, tasks, strict=True)
    ]
    # SpeechStew has it as well, MAESTRO's table does not.
    rows.append(SuiteRow("wsj", "WSJ", "wsj_paired_en", averaged=False))
    groups = {_PAPERS: SPEECHSTEW_ROWS}
    return Suite("speechstew", "SpeechStew", "asr", tuple(rows), groups, SPEECHSTEW)


def _of_mixture(name: str, title: str, mixture: str) -> Suite:
    """Returns the suite of all tasks of a mixture over languages."""
    from maestro_jax.data.task_registry import get_task_or_mixture, tasks_of

    tasks = [task.name for task in tasks_of(get_task_or_mixture(mixture))]
    keys = [task.removeprefix(f"{mixture}_") for task in tasks]
    rows = [SuiteRow(key, key, task) for key, task in zip(keys, tasks, strict=True)]
    # No average of theirs is published that ours would be a part of.
    return Suite(name, title, "asr", tuple(rows), family=mixture)


_SUITES = {
    "voxpopuli": _voxpopuli,
    "covost2": _covost2,
    "speechstew": _speechstew,
    "fleurs": lambda: _of_mixture("fleurs", "FLEURS", "fleurs_paired"),
    "common_voice": lambda: _of_mixture("common_voice", "Common Voice", "common_voice_paired"),
}

SUITE_NAMES: tuple[str, ...] = tuple(_SUITES)


def get_suite(name: str) -> Suite:
    """Returns the suite of a name.

    Raises:
        UserError: There is none.
    """
    if name not in _SUITES:
        raise UserError(
            f"there is no suite {name!r}; there are {', '.join(_SUITES)}."
            f"{near_misses(name, _SUITES)}"
        )
    return _SUITES[name]()


def suite_of(tasks: Collection[str]) -> Suite | None:
    """Returns the suite of languages that tasks are a part of, for mixtures that a run names.

    Of SpeechStew, whose rows are not languages, only the suite itself makes one table.

    Args:
        tasks: Names of tasks.

    Returns:
        The part of it with these tasks; None where neither VoxPopuli nor CoVoST-2 has them all.
    """
    for suite in (_voxpopuli(), _covost2(), _covost2_of_text()):
        keys = {row.key for row in suite.rows if row.task in tasks}
        if tasks and len(keys) == len(set(tasks)):
            return suite._only(keys)
    return None


def rows_of_stored(test_set: str, predictions: Collection[Prediction]) -> dict[str, Any]:
    """Returns the arguments `rows` and `scorers` of `evaluate.score` for stored predictions.

    Args:
        test_set: Name of the test set with its split, such as `speechstew.test`.
        predictions: Its predictions.

    Returns:
        Those of the suite; nothing where the rows are languages or directions.
    """
    name = test_set.partition(".")[0]
    tasks = {prediction.task for prediction in predictions}
    directions = {prediction.direction for prediction in predictions}
    if name not in _SUITES or len(tasks) <= len(directions):
        return {}
    suite = get_suite(name)
    return {"rows": suite.row_names, "scorers": suite.scorers()}
