"""Mixtures of several corpora, taken apart to be scored."""

from __future__ import annotations

import pytest

from maestro_jax.data.task_registry import get_task_or_mixture, tasks_of
from maestro_jax.data.test_sets import row_of, separate_test_sets


@pytest.mark.parametrize(
    ("task", "row"),
    [("mls_paired_de", "de"), ("covost2_st_en_zh", "en-zh"), ("common_voice_paired_zh_tw", "zh")],
)
def test_rows(task: str, row: str) -> None:
    assert row_of(get_task_or_mixture(task)) == row


@pytest.mark.parametrize(
    ("mixture", "sets"),
    [
        ("voxpopuli_paired", {"": 16}),
        ("maestro_covost2_st", {"": 21}),
        (
            "maestro_speechstew_paired_free",
            {".librispeech": 1, ".common_voice": 1, ".tedlium": 1},
        ),
        # Two corpora have German; Babel has what is theirs alone, and gets a table all the same.
        ("maestro_voxpopuli_mc4_paired", {".voxpopuli": 14, ".mls": 8, ".babel": 17}),
    ],
)
def test_a_mixture_is_as_many_test_sets_as_it_takes(mixture: str, sets: dict[str, int]) -> None:
    tasks = tasks_of(get_task_or_mixture(mixture))
    found = separate_test_sets(mixture, tasks)
    assert {name: len(members) for name, members in found.items()} == {
        f"{mixture}{ending}": count for ending, count in sets.items()
    }
    assert sorted(t.name for members in found.values() for t in members) == sorted(
        task.name for task in tasks
    )


def test_two_test_sets_of_a_corpus_are_two_tables() -> None:
    names = ["librispeech_paired_en", "librispeech_paired_en_other", "mls_paired_en"]
    found = separate_test_sets("mine", [get_task_or_mixture(name) for name in names])
    assert {name: [task.name for task in members] for name, members in found.items()} == {
        "mine.librispeech_paired_en": names[:1],
        "mine.librispeech_paired_en_other": names[1:2],
        "mine.mls": names[2:],
    }
