"""Minutes of paired speech: sums over the records, and the list and plot of several runs."""

from __future__ import annotations

import json
import types

import pytest

import maestro_jax.cli.main as cli
from maestro_jax.batches import StreamConfig
from maestro_jax.errors import UserError


def run_of(init_from=None, **mixtures):
    """What is read of a run."""
    streams = {name: StreamConfig(mixture=each, batch_size=1) for name, each in mixtures.items()}
    return types.SimpleNamespace(streams=streams, used_streams=tuple(streams), init_from=init_from)


def summed(corpus, *splits):
    return sum(len(record["audio"]) for split in splits for record in corpus.records[split]) / 16e3


def test_minutes_are_those_of_the_records(corpus):
    from maestro_jax.evaluation.paired_minutes import minutes_of_paired_speech

    whole, part = run_of(paired="tinyvox_paired"), run_of(paired="tinyvox_paired_sl")
    expected = {
        language: pytest.approx(summed(corpus, f"paired_{language}_train") / 60)
        for language in ("de", "sl")
    }
    assert minutes_of_paired_speech([whole], "asr", corpus.root) == expected
    # Fine-tuning on what pretraining has read adds nothing.
    assert minutes_of_paired_speech([part, whole], "asr", corpus.root) == expected
    assert set(minutes_of_paired_speech([part], "asr", corpus.root)) == {"sl"}
    # Speech without transcripts is not paired.
    assert minutes_of_paired_speech([run_of(speech="tinyvox_speech")], "asr", corpus.root) == {}
    translated = run_of(paired="tinyvox_paired", st="tinyvox_st")
    assert minutes_of_paired_speech([translated], "st", corpus.root) == expected


def test_one_command_over_several_runs(corpus, tmp_path, monkeypatch, capsys):
    runs = {
        "pretrained": run_of(paired="tinyvox_paired_de"),
        "tuned": run_of(str(tmp_path / "pretrained" / "best"), paired="tinyvox_paired_sl"),
    }
    monkeypatch.setattr(
        "maestro_jax.gin_utils.gin_config.load_run", lambda path: runs[str(path).split("/")[-1]]
    )
    for name, scores in (("pretrained", (5.0, 90.0)), ("tuned", (6.0, 40.0))):
        directory = tmp_path / name / "evaluation" / "10-ema-greedy"
        directory.mkdir(parents=True)
        (tmp_path / name / "config.gin").write_text("")
        (directory / "toy.test.hypotheses.jsonl").write_text("")
        rows = [
            {
                "direction": language,
                "language": language,
                "primary_metric": "wer",
                "wer": score,
                "utterances": 7,
            }
            | {"wer_interval": [score - 1, score + 1]}
            for language, score in zip(("de", "sl"), scores, strict=True)
        ]
        content = {"name": "toy.test", "kind": "asr", "titles": {"wer": "WER %"}, "rows": rows}
        (directory / "toy.test.json").write_text(json.dumps(content))
    command = ["compare", "--minutes", *(str(tmp_path / name) for name in runs)]
    command += ["--data_dir", str(corpus.root), "--plot", str(tmp_path / "plot.svg")]
    assert cli.main([*command, "--json"]) == 0
    points = {(p["row"], p["run"]): p for p in json.loads(capsys.readouterr().out)}
    german = summed(corpus, "paired_de_train") / 60
    assert points["sl", "pretrained"]["minutes"] == 0.0
    assert points["sl", "tuned"]["minutes"] == pytest.approx(summed(corpus, "paired_sl_train") / 60)
    # The run that it began from has read these.
    assert points["de", "tuned"]["minutes"] == pytest.approx(german)
    assert (points["sl", "tuned"]["score"], points["sl", "tuned"]["interval"]) == (40.0, [39, 41])
    drawn = (tmp_path / "plot.svg").read_text()
    assert drawn.startswith("<?xml") and "<svg" in drawn
    assert cli.main(command) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line[:2] == "sl"]
    assert [line[1:4] for line in lines] == [
        ["none", "pretrained", "90.0"],
        ["0.0", "tuned", "40.0"],
    ]
    (tmp_path / "pretrained" / "config.gin").unlink()
    assert cli.main(["compare", "--minutes", str(tmp_path / "tuned")]) == 2
    assert "is not there any more" in capsys.readouterr().err


def test_what_cannot_be_listed(corpus, tmp_path, capsys):
    from maestro_jax.evaluation.paired_minutes import read_points

    assert cli.main(["compare", "a", "b", "--plot", "x.png"]) == 2
    assert "give that as well" in capsys.readouterr().err
    assert cli.main(["compare", "--minutes", str(tmp_path)]) == 2
    assert "evaluate first" in capsys.readouterr().err
    (tmp_path / "old.json").write_text("[]")
    with pytest.raises(UserError, match=r"old\.json has no scores"):
        read_points(tmp_path / "old.json", "run", {})
