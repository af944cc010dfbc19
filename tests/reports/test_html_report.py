"""The report of a run: its page, and the health checks of healthy and of failing runs."""

from __future__ import annotations

import errno
import html.parser
import json
import os

import numpy as np
import pytest

from maestro_jax.cli.main import main
from maestro_jax.errors import UserError
from maestro_jax.evaluation.evaluate import score
from maestro_jax.evaluation.predictions import Prediction
from maestro_jax.evaluation.score_table import ScoreTable
from maestro_jax.reports import html_report
from maestro_jax.reports.health_checks import FAIL, OK, WARN, check_health
from maestro_jax.reports.html_report import (
    draw_probe,
    tensorboard_images,
    update_report,
    write_report,
)

NAME = "run <b>&amp; co"  # a directory may be called anything
STEPS = np.arange(0, 601, 20)
SECTIONS = (
    "summary",
    "health",
    "losses",
    "validation",
    "gradients",
    "durations",
    "alignment",
    "retrieval",
    "codes",
    "learning_rates",
    "throughput",
)


def falling(start, end):
    return end + (start - end) * np.exp(-STEPS / 150)


def healthy():
    """The curves of a run as it should be."""
    curves = {
        "loss": falling(9, 2),
        "loss/transducer": falling(6, 0.5),
        "loss/contrastive": falling(4, 2),
        "loss/matching": falling(2, 0.4),
        "loss/duration": falling(3, 0.7),
        "grad_norm": falling(40, 3),
        "grad_norm/transducer": falling(30, 2),
        "grad_norm/matching": falling(3, 0.5),
        "skipped_steps": 0 * STEPS,
        "learning_rate": np.minimum(STEPS / 100, 1) * 8e-4,
        "steps_per_second": 2 + 0 * STEPS,
        "data_wait_fraction": 0 * STEPS + 0.01,
        "elapsed_seconds": 0.5 * STEPS,
        "curriculum_step": STEPS,
        "paired/examples_per_second": 16.0 + 0 * STEPS,
        "paired/audio_seconds_per_second": 40.0 + 0 * STEPS,
        "paired/tokens_per_second": 300.0 + 0 * STEPS,
        "paired/first_label_fraction": falling(0.9, 0.05),
        "paired/last_label_fraction": falling(0.05, 0.05),
        "paired/frame_variance_ratio": falling(0.2, 0.6),
        "text/too_long_fraction": 0 * STEPS,
        "speech/code_perplexity": falling(60, 40),
        "speech/code_information": 0.8 + 0 * STEPS,
        "speech/contrastive_accuracy": falling(0.03, 0.4),
        "speech/contrastive_chance": 0.03 + 0 * STEPS,
        "speech/masked_accuracy": falling(0.02, 0.3),
        "speech/masked_chance": 0.06 + 0 * STEPS,
        "probe/transducer_loss": falling(6, 0.8),
        "probe/alignment_entropy": falling(4, 0.8),
        "probe/duration_error": falling(3.1, 0.8),
        "probe/duration_error_constant": falling(2.0, 1.9),
        "probe/duration_ratio": falling(0.2, 1.02),
        "probe/codes_used": falling(63, 55),
        "probe/code_perplexity": falling(60, 38),
        "mfu": 0.4 + 0 * STEPS,
        "validation/loss": falling(9, 3),
        "validation/wer": falling(100, 9),
        "validation/wer/de": falling(100, 8),
    }
    for prefix in ("", "top_"):
        curves |= {
            f"probe/{prefix}cosine": falling(0.02, 0.7),
            f"probe/{prefix}cosine_unmatched": falling(0.01, 0.1),
            f"probe/retrieval/{prefix}speech_to_text": falling(0.02, 0.43),
            f"probe/retrieval/{prefix}text_to_speech": falling(0.02, 0.38),
            f"probe/retrieval/{prefix}chance": 0 * STEPS + 0.02,
            f"probe/retrieval/{prefix}token_speech_to_text": falling(0.1, 0.7),
            f"probe/retrieval/{prefix}token_chance": 0 * STEPS + 0.08,
        }
    return {name: np.asarray(values, np.float64) for name, values in curves.items()}


def probe_arrays(seed, frames=50, labels=12):
    rng = np.random.default_rng(seed)
    emissions = np.sort(rng.integers(0, frames, labels))
    posterior = np.exp(-0.5 * ((np.arange(frames)[:, None] - emissions) / 1.5) ** 2)
    aligned = rng.integers(0, 9, 300)
    return {
        "aligned": aligned,
        "predicted": np.maximum(aligned + rng.integers(-2, 3, 300), 0),
        "code_counts": rng.integers(0, 40, (1, 64)),
        "tokens": rng.integers(3, 60, labels),
        "emission_frames": emissions,
        "posterior": (posterior / posterior.sum(axis=0)).astype(np.float16),
        "similarity": np.eye(frames, dtype=np.float16),
        "top_similarity": np.eye(frames, dtype=np.float16),
        "mel": rng.normal(size=(4 * frames, 80)).astype(np.float16),
    }


def write_run(directory, curves, *, probes=True, described=True):
    """What training leaves in a model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "metrics.jsonl").open("w") as file:
        for index, step in enumerate(STEPS.tolist()):
            record = {name: float(values[index]) for name, values in curves.items()}
            file.write(json.dumps({"step": step, **record}) + "\n")
    folder = directory / "diagnostics"
    folder.mkdir(exist_ok=True)
    if probes:
        for step in (0, 300, 600):
            np.savez_compressed(folder / f"{step:08d}.npz", **probe_arrays(step))
    if described:
        stream = {"mixture": "<script>alert(1)</script>", "batch_size": 8}
        description = {
            "model": "Maestro",
            "parameters": 1_234_567,
            "objective": "MaestroPretraining",
            "weights": {"transducer": 1.0},
            "streams": {"paired": stream},
            "steps": 600,
            "seed": 3,
            "mesh": {"data": 1},
            "device": "cpu",
            "frame_seconds": 0.04,
            "mel_frame_seconds": 0.01,
            "held_out": {"mixture": "corpus", "split": "validation"},
        }
        (folder / "run.json").write_text(json.dumps(description))


class Page(html.parser.HTMLParser):
    """What a page holds, and everything that it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.fetched, self.tags, self.images = [], [], [], {}
        self.words = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag == "section":
            self.sections.append(attributes["id"])
        if tag == "img":
            self.images.setdefault(self.sections[-1], []).append(attributes["src"])
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            if not attributes.get(name, "#").startswith(("#", "data:image/png;base64,")):
                self.fetched.append(attributes[name])

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of a healthy run, and its pictures."""
    directory = tmp_path_factory.mktemp("runs") / NAME
    write_run(directory, healthy())
    path, pictures = write_report(directory)
    return directory, path.read_text(encoding="utf-8"), pictures


def test_every_section_stands_with_its_pictures(written):
    _, text, _ = written
    page = Page(text)
    assert tuple(page.sections) == SECTIONS
    assert {name: len(images) for name, images in page.images.items()} == {
        "losses": 1,
        "validation": 1,
        "gradients": 2,
        "durations": 2,
        "alignment": 3,
        "retrieval": 2,
        "codes": 2,
        "learning_rates": 1,
        "throughput": 1,
    }
    said = " ".join(page.words)
    for expected in ("1,234,567", "600 of 600", "0:05:00", "MaestroPretraining", "split valid"):
        assert expected in said, expected


def test_the_page_fetches_nothing_and_trusts_no_name(written):
    _, text, _ = written
    page = Page(text)
    assert not page.fetched and "http" not in text.replace("http-equiv", "")
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    assert "<script>alert(1)</script>" in "".join(page.words)
    assert NAME in "".join(page.words)


def test_pictures_for_tensorboard(written):
    _, _, pictures = written
    shown = tensorboard_images(pictures)
    names = ("durations", "alignment", "similarity", "codes")
    assert tuple(shown) == tuple(f"report/{name}" for name in names)
    for image in shown.values():
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert image.std() > 5


def test_the_command_writes_it_again(written, capsys):
    directory, text, _ = written
    (directory / "report.html").unlink()
    assert main(["report", str(directory)]) == 0
    assert capsys.readouterr().out.strip() == str(directory / "report.html")
    assert len((directory / "report.html").read_text()) == pytest.approx(len(text), rel=0.05)


def test_a_run_without_diagnostics_has_a_page(tmp_path):
    curves = {name: healthy()[name] for name in ("loss", "loss/transducer", "learning_rate")}
    write_run(tmp_path, curves, probes=False, described=False)
    page = Page(write_report(tmp_path)[0].read_text())
    assert tuple(page.sections) == SECTIONS and set(page.images) == {"losses", "learning_rates"}
    assert "Nothing to show: this section needs" in " ".join(page.words)


def test_a_report_that_fails_does_not_end_training(tmp_path, caplog):
    assert update_report(tmp_path / "absent", 3) == {}
    assert "report.html could not be written at step 3" in caplog.text
    with pytest.raises(UserError, match="cannot read the metrics"):
        write_report(tmp_path / "absent")


def judged(changes, codes=64):
    curves = healthy() | {name: np.full(len(STEPS), value) for name, value in changes.items()}
    described = {"frame_seconds": 0.04}
    found = check_health({name: (STEPS, v) for name, v in curves.items()}, described, codes)
    return {(each.subject, each.status): each.text for each in found}


def test_a_full_disk_is_one_line(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{tmp_path}/report.html")

    monkeypatch.setattr(html_report, "write_report", full)
    assert html_report.update_report(tmp_path, 3) == {}
    [record] = caplog.records
    assert record.getMessage() == (
        f"report.html could not be written at step 3 ({tmp_path}/report.html: No space left on "
        "device; free some space, and run the same command again)"
    )
    assert not record.exc_info


def test_a_healthy_run_is_called_healthy():
    found = judged({})
    assert {state for _, state in found} == {OK}
    assert "0.84 frames (34 ms)" in found["Durations", OK]
    assert "42% of cases, by chance in 2%" in found["Retrieval", OK]


@pytest.mark.parametrize(
    ("subject", "state", "changes", "told"),
    [
        ("Updates", FAIL, {"skipped_steps": 30.0}, "30 of 600"),
        ("Durations", WARN, {"probe/duration_error": 1.7}, "within 1.70 frames"),
        ("Durations", FAIL, {"probe/duration_error": 2.5}, "within 2.50 frames"),
        ("Alignment", WARN, {"probe/alignment_entropy": 2.0}, "7.4 frames"),
        ("Alignment", FAIL, {"paired/last_label_fraction": 0.9}, "has the alignment collapsed?"),
        ("Retrieval", FAIL, {"probe/retrieval/speech_to_text": 0.03}, "3% of cases"),
        ("Retrieval", WARN, {"probe/retrieval/top_speech_to_text": 0.3}, "it was 30% at the start"),
        ("Cosine", FAIL, {"probe/cosine": 0.1}, "0.10 between matched"),
        ("Codes", WARN, {"speech/code_perplexity": 12.0}, "12.0 of 64 codes"),
        ("Codes", FAIL, {"speech/code_perplexity": 2.0}, "has the codebook collapsed?"),
        ("Codes", WARN, {"speech/code_information": 0.2}, "noise picks the codes"),
        # Those of a run of 600 steps with four utterances each, in which nothing was learned.
        ("Contrastive", FAIL, {"speech/contrastive_accuracy": 0.067}, "6.7% of cases"),
        ("Contrastive", WARN, {"speech/contrastive_accuracy": 0.1}, "by chance in 3.0%"),
        ("Masked prediction", FAIL, {"speech/masked_accuracy": 0.024}, "nothing has been learned"),
        # Who always names the most frequent code is right as often.
        ("Masked prediction", FAIL, {"speech/masked_chance": 0.3}, "in 30.0%"),
        ("Losses", WARN, {"loss/contrastive": 4.6}, "within 5% of the start: contrastive"),
        ("Encoders", FAIL, {"paired/frame_variance_ratio": 0.01}, "ignores its input"),
        ("Gradients", WARN, {"grad_norm/transducer": 1e4}, "dominating"),
        ("Resampling", WARN, {"text/too_long_fraction": 0.08}, "8.0% of text"),
        ("Curriculum", WARN, {"curriculum_step": 400.0}, "held it back for 200 steps"),
        ("Speed", WARN, {"data_wait_fraction": 0.4}, "40%"),
    ],
)
def test_what_is_wrong_is_told(subject, state, changes, told):
    assert told in judged(changes)[subject, state]


def test_a_loss_that_rises_is_told():
    curves = healthy()
    curves["loss/transducer"] = curves["loss/transducer"][::-1]
    found = check_health({name: (STEPS, values) for name, values in curves.items()}, {}, 64)
    assert [each.text for each in found if each.subject == "Losses"][0].startswith("higher")


def test_the_last_probe_as_pictures(written, tmp_path):
    directory, _, _ = written
    paths = draw_probe(directory)
    assert [path.name for path in paths] == ["alignment.png", "durations.png", "similarity.png"]
    assert all(len(path.read_bytes()) > 5_000 for path in paths)
    write_run(tmp_path, healthy(), probes=False)
    assert draw_probe(tmp_path) == []


def test_where_the_time_went_is_told(tmp_path):
    lines = [
        {"step": 100, "loss": 3.0, "mfu": 0.5, "goodput/step_seconds": 1.0},
        {
            "step": 200,
            "loss": 2.0,
            "mfu": 0.3,
            "goodput/start_seconds": 600.0,
            "goodput/step_seconds": 4500.0,
            "goodput/input_seconds": 900.0,
            "goodput/lost_seconds": 1200.0,
        },
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path)[0].read_text()
    assert "62.5% of 2:00:00 were steps." in page
    # 0.4 during three quarters of the time.
    assert "utilisation: 40.0% during steps, 30.0% of the whole time." in page
    assert "<th>lost</th><td>0:20:00</td><td>16.7%</td>" in page
    assert 'href="#goodput"' in page


def test_languages_without_spaces_count_by_character(tmp_path):
    write_run(tmp_path, healthy(), probes=False, described=False)
    predictions = [
        Prediction(id="1", language=language, reference=text, hypothesis=text[1:])
        for language, text in (("de", "eins zwei"), ("zh", "你好世界"))
    ]
    ScoreTable(score(predictions, kind="asr", name="both.test")).write(tmp_path / "evaluation")
    page = Page(write_report(tmp_path)[0].read_text())
    words = [word for word in page.words if word.strip()]
    assert words[words.index("zh") : words.index("zh") + 4][2:] == [
        "100.0 (100.0 to 100.0)",
        "25.0 (25.0 to 25.0)",
    ]
    assert "zh: the CER counts, for there are no spaces between words." in words


def test_scores_are_on_the_page_also_those_of_earlier_versions(tmp_path):
    write_run(tmp_path, healthy(), probes=False, described=False)
    folder = tmp_path / "evaluation"
    predictions = [Prediction(id="1", language="de", reference="eins zwei", hypothesis="eins")]
    ScoreTable(score(predictions, kind="asr", name="new.test")).write(folder)
    earlier = {
        "name": "old.test",
        "units": {"error_rate": "percent", "wer": "percent"},
        "averages": [{"name": "all", "rows": ["fr"], "error_rate": 12.5, "wer": 12.5}],
        "rows": [{"direction": "fr", "utterances": 7, "leading": "wer", "wer": 12.5}],
    }
    (folder / "old.test.json").write_text(json.dumps(earlier))
    (folder / "other.json").write_text("[]")
    ScoreTable(score(predictions, kind="asr", name="new.test")).write(folder / "beam_of_8")
    assert main(["report", str(tmp_path)]) == 0
    page = Page((tmp_path / "report.html").read_text())
    assert page.sections[2] == "scores"
    words = [word for word in page.words if word.strip()]
    start = words.index("new.test")
    assert words[start : start + 11] == [
        *("new.test", "utterances", "WER %", "CER %", "de", "1", "50.0 (50.0 to 50.0)"),
        *("55.6 (55.6 to 55.6)", "average of 1", "50.0", "55.6"),
    ]
    assert words.index("new.test (beam of 8)") > start + 11
    start = words.index("old.test")
    assert words[start : start + 7] == "old.test utterances WER fr 7 12.5".split() + [
        "average of 1"
    ]
