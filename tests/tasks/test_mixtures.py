"""The mixtures of the paper's experiments: of which streams, languages and corpora they are."""

from __future__ import annotations

import collections

import pytest
import seqio

from maestro_jax.data.stream_tasks import StreamTask, stream_of
from maestro_jax.data.task_registry import get_task_or_mixture, list_tasks
from maestro_jax.errors import UserError
from maestro_jax.tasks.corpus_tasks import VOCABULARY
from maestro_jax.text.languages import LANGUAGES

# Stream, number of tasks, number of languages. Facts of the paper: 14 languages of VoxPopuli, 23 of
# its unlabelled speech, 8 of MLS, 17 of Babel, 21 directions of CoVoST-2, 7 corpora of SpeechStew;
# pairs of 32 languages (with English, Dutch and others twice) and speech of 51.
MIXTURES = {
    "maestro_speechstew_speech": ("speech", 3, 1),
    "maestro_speechstew_paired": ("paired", 7, 1),
    "maestro_speechstew_paired_free": ("paired", 3, 1),
    "maestro_speechstew_text": ("text", 2, 1),
    "maestro_voxpopuli_speech": ("speech", 23 + 22 + 8 + 17, None),
    "maestro_voxpopuli_paired": ("paired", 14, 14),
    "maestro_voxpopuli_text": ("text", 14, 14),
    "maestro_voxpopuli_mc4_paired": ("paired", 14 + 8 + 17, 32),
    "maestro_voxpopuli_mc4_text": ("text", None, None),
    "maestro_covost2_speech": ("speech", 23 + 22 + 8 + 17, None),
    "maestro_covost2_paired": ("paired", 14 + 8 + 17 + 21, None),
    "maestro_covost2_text": ("text", None, None),
    "maestro_covost2_mt": ("mt", 21 + 18, 21),
    "maestro_covost2_st": ("st", 21, 21),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_what_a_mixture_is_of(name: str) -> None:
    stream, tasks, languages = MIXTURES[name]
    mixture = get_task_or_mixture(name)
    assert isinstance(mixture, seqio.Mixture)
    assert stream_of(mixture) == stream
    members = mixture.tasks
    assert all(isinstance(task, StreamTask) and "train" in task.splits for task in members)
    spoken = {code for task in members for code in task.languages}
    assert tasks in (None, len(members))
    assert languages in (None, len(spoken))
    # One run has one vocabulary.
    for task in members:
        for field in ("text", "translation"):
            if field in task.output_features:
                assert task.output_features[field].vocabulary == VOCABULARY
    upsampled = get_task_or_mixture(f"{name}_upsampled")
    assert {task.name for task in upsampled.tasks} == {task.name for task in members}


def test_text_of_the_web_is_of_the_languages_that_are_spoken() -> None:
    def languages(name: str) -> set[str]:
        return {code for task in get_task_or_mixture(name).tasks for code in task.languages}

    # mC4 has no Croatian, and none of four languages of Babel.
    without = languages("maestro_voxpopuli_mc4_paired") - languages("maestro_covost2_text")
    assert without == {"hr", "as", "tpi", "yue"}
    assert languages("maestro_covost2_mt") <= languages("maestro_covost2_text")


def test_no_mixture_draws_a_corpus_twice() -> None:
    for name in MIXTURES:
        sources = collections.Counter(
            (repr(task.source), stream_of(task)) for task in get_task_or_mixture(name).tasks
        )
        assert set(sources.values()) == {1}, sources.most_common(3)


def test_every_mixture_of_the_paper_is_tested() -> None:
    get_task_or_mixture("maestro_covost2_st")
    there = {name for name in seqio.MixtureRegistry.names() if name.startswith("maestro_")}
    assert there == {*MIXTURES, *(f"{name}_upsampled" for name in MIXTURES)}


@pytest.mark.parametrize(
    ("name", "stream", "languages", "target", "remedy"),
    [
        ("text_files_text_ml", "text", ("ml",), "", "text_files --source_dir DIR --languages ml"),
        ("text_files_text_de_ch", "text", ("de-CH",), "", "--languages de-CH"),
        ("parallel_text_mt_ml_uk", "mt", ("ml",), "uk", "--languages ml_uk"),
        ("common_voice_paired_eo", "paired", ("eo",), "", "--languages eo"),
        ("common_voice_speech_uk_other", "speech", ("uk",), "", "--languages uk_other"),
        ("fleurs_paired_hi", "paired", ("hi",), "", "--languages hi"),
    ],
)
def test_tasks_of_a_language_that_no_module_lists(name, stream, languages, target, remedy) -> None:
    try:
        assert name not in seqio.TaskRegistry.names()
        task = get_task_or_mixture(name)
        assert isinstance(task, StreamTask)
        assert (task.stream, task.languages, task.target_language) == (stream, languages, target)
        assert remedy in task.source.remedy
    finally:
        remove_unlisted()


@pytest.mark.parametrize(
    "name", ["text_files_text_xyz", "fleurs_paired_dutch", "parallel_text_mt_ml", "mls_paired_ml"]
)
def test_tasks_that_are_none(name) -> None:
    with pytest.raises(UserError, match=f"unknown task or mixture '{name}'"):
        get_task_or_mixture(name)


def test_what_is_prepared_in_an_unlisted_language_is_listed(tmp_path) -> None:
    for config in ("ml", "uk", "notes"):
        (tmp_path / "text_files" / config).mkdir(parents=True)
    try:
        names = {row.name for row in list_tasks(tmp_path)}
        assert {"text_files_text_ml", "text_files_text_uk", "text_files_text_de"} <= names
        assert "text_files_text_notes" not in names
    finally:
        remove_unlisted()


def remove_unlisted() -> None:
    """Removes the tasks that the tests above have added."""
    for name in list(seqio.TaskRegistry.names()):
        task = seqio.TaskRegistry.get(name)
        if isinstance(task, StreamTask) and not {*task.languages} <= {*LANGUAGES}:
            seqio.TaskRegistry.remove(name)
