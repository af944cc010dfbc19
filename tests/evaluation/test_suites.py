"""Suites name their tasks, take parts by language, and say what they lack."""

from __future__ import annotations

import argparse

import pytest

from maestro_jax.cli.commands import eval as eval_command
from maestro_jax.cli.main import main
from maestro_jax.data.corpora.voxpopuli import AVERAGED_LANGUAGES, LANGUAGES
from maestro_jax.errors import UserError
from maestro_jax.evaluation.suites import SUITE_NAMES, get_suite
from maestro_jax.scoring.glm import GlmWordErrorRate


@pytest.mark.parametrize("name", SUITE_NAMES)
def test_every_suite_names_tasks_with_a_test_split(name: str) -> None:
    suite = get_suite(name)
    assert suite.name == name and suite.part_of == 0
    for row, task in zip(suite.rows, suite.tasks(), strict=True):
        assert task.name == row.task
        assert "test" in task.splits
    assert len(set(suite.row_names.values())) == len(suite.rows)
    assert [row.name for row in suite.rows if row.telephone] == [
        row.name for row in suite.rows if row.name in ("Switchboard", "CallHome")
    ]


def test_rows_are_those_of_the_corpora() -> None:
    parliament = get_suite("voxpopuli")
    assert {row.key for row in parliament.rows} == set(LANGUAGES)
    assert {row.key for row in parliament.rows if row.averaged} == set(AVERAGED_LANGUAGES)
    assert [row.name for row in get_suite("covost2").rows][:5] == [
        *("fr-en", "de-en", "es-en", "ca-en", "fa-en")
    ]
    assert len(get_suite("covost2").rows) == 21
    stew = get_suite("speechstew")
    assert [row.key for row in stew.rows if not row.averaged] == ["wsj"]
    # The second test sets of AMI and of Switchboard are splits of theirs.
    for row, split in (("ami_sdm1", "test_distant"), ("callhome", "test_callhome")):
        [task] = stew.select([row]).tasks()
        assert split in repr(task.source)


def test_languages_take_a_part() -> None:
    suite = get_suite("covost2")
    part = suite.select(["sv_SE", "de-en", "fr"])
    assert [row.name for row in part.rows] == ["fr-en", "de-en", "sv-en"]
    assert part.part_of == 21 and set(part.groups) == {"high", "mid", "low"}
    assert suite.select([]) is suite
    # Papers average over neither Estonian nor over a part.
    assert get_suite("voxpopuli").select(["et", "de"]).part_of == 14
    assert not get_suite("voxpopuli").select(["et", "de"]).groups
    assert set(get_suite("speechstew").select(["callhome"]).scorers()) == {"CallHome"}
    # Corpora with any number of languages have tasks for all of them.
    assert get_suite("common_voice").select(["bg", "zh-TW"]).task_names == (
        "common_voice_paired_bg",
        "common_voice_paired_zh_tw",
    )


@pytest.mark.parametrize(
    ("suite", "languages", "message"),
    [
        ("voxpopuli", ["dd"], r"the suite voxpopuli has no 'dd'; it has en, .*lt\..*'de'"),
        ("covost2", ["en"], "the suite covost2 has no 'en'"),
        ("speechstew", ["swb"], "no 'swb'; it has librispeech_clean"),
    ],
)
def test_unknown_languages_are_refused(suite: str, languages: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_suite(suite).select(languages)


def test_unknown_suites_are_refused() -> None:
    with pytest.raises(UserError, match="no suite 'voxpopli'; there are .* mean 'voxpopuli'"):
        get_suite("voxpopli")


def test_the_command_names_all_suites() -> None:
    parser = argparse.ArgumentParser()
    eval_command.add_arguments(parser)
    [option] = [action for action in parser._actions if "--suite" in action.option_strings]
    assert [name for name in SUITE_NAMES if name not in (option.help or "")] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "fleurs", "--task", "x"], "give --suite or --task, not both"),
        (["--languages", "de"], "--languages and --glm are for suites"),
    ],
)
def test_options_that_contradict_each_other(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--model_dir", "none", *options]) == 2
    assert message in capsys.readouterr().err


def test_rules_for_telephone_conversations() -> None:
    scorers = get_suite("speechstew").scorers()
    assert set(scorers) == {"Switchboard", "CallHome"}
    [metric] = scorers["CallHome"]
    assert isinstance(metric, GlmWordErrorRate) and metric.name == "wer"
    assert get_suite("voxpopuli").scorers() == {}
