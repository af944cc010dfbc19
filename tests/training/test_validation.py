"""Validation while training: what it measures, the best checkpoint, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import json
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.batches import StreamConfig, synthetic_batch
from maestro_jax.decoding.hypotheses import Hypotheses
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.training import validation
from maestro_jax.training.batch_feed import Sample
from maestro_jax.training.callbacks import Callback
from maestro_jax.training.partial_restore import restore_params
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.saved_checkpoints import find_checkpoint
from maestro_jax.training.trainer import train
from maestro_jax.training.validation import ValidationConfig

WORDS = ["<pad>", *"abcdefghijklmno"]
DE, EN = LANGUAGES.index("de"), LANGUAGES.index("en")


class Words:
    """A vocabulary of a word per token."""

    def decode(self, tokens):
        return " ".join(WORDS[token] for token in tokens)


@pytest.fixture
def toy_asr(toy):
    """Runs of the toy on pairs, of whose text alone it learns."""

    class Model(toy.Model):
        vocab_sizes = {"transducer": 16}
        needs_language = False

    @dataclasses.dataclass(frozen=True)
    class Objective(toy.Objective):
        @property
        def loss_weights(self):
            return {"paired": {"text": 1.0, "drift": 0.01, "mt": 1.0}}

        def init(self, model, rng, batch):
            return super().init(model, rng, {"text": batch["paired"]})

        def loss_terms(self, model, params, ema_params, batch, **keywords):
            batch = {"text": batch["paired"]}
            return super().loss_terms(model, params, ema_params, batch, **keywords)

    streams = {
        "paired": StreamConfig(mixture="toy", batch_size=8, audio_samples=400, text_tokens=6)
    }

    def run(**changes):
        settings = {
            "model": Model(),
            "objective": Objective(),
            "streams": streams,
            "validation": ValidationConfig(every=2),
            "checkpoint_every": 100,
            "keep_checkpoints": 1,
            "steps": 7,
        }
        return toy.run(**(settings | changes))

    def batches(start):
        while True:
            yield synthetic_batch(streams, seed=start, vocab_size=16)
            start += 1

    run.batches = batches
    return run


def sample(rows=16):
    """Two batches; the last row is padding, and rows are German and English by turns."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 7, rows).astype(np.int32)
    lengths[-1] = 0
    text = rng.integers(1, 16, (rows, 6)) * (np.arange(6) < lengths[:, None])
    whole = {
        "audio": np.zeros((rows, 400), np.int16),
        "audio_length": np.where(lengths > 0, 400, 0).astype(np.int32),
        "text": text.astype(np.int32),
        "text_length": lengths,
        "language": np.where(np.arange(rows) % 2, EN, DE).astype(np.int32),
    }
    return Sample([{k: v[i : i + 8] for k, v in whole.items()} for i in (0, 8)], Words())


def lines(directory):
    return {
        line["step"]: line
        for line in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    }


@pytest.fixture
def decoder(monkeypatch):
    """A decoder that says what it was told to; `errors[n]` rows of validation n lose a word."""
    plan = {"errors": [], "called": 0}

    def jitted(run, *, decoder):
        assert decoder == "transducer"
        whole = sample()

        def decode(params, *, audio, audio_length):
            call, half = divmod(plan["called"], 2)
            plan["called"] += 1
            batch = whole.batches[half]
            lengths = batch["text_length"].copy()
            wrong = plan["errors"][call]
            if half == 0:
                lengths[:wrong] -= 1
            zeros = jnp.zeros((8, 1))
            tokens = jnp.asarray(batch["text"])[:, None]
            return Hypotheses(
                tokens, jnp.asarray(lengths)[:, None], tokens, tokens, zeros, zeros, zeros
            )

        return decode

    monkeypatch.setattr(validation, "jitted_decoding", jitted)
    return plan


def test_losses_are_those_of_the_averaged_parameters(toy_asr, tmp_path):
    run = toy_asr(steps=3)
    data = sample()
    data = dataclasses.replace(data, vocabulary=None)
    state = train(run, tmp_path, batches=toy_asr.batches, validation_samples={"paired": data})
    model, params = run.model, state.ema_params
    nats, labels, by_batch, rows = 0.0, 0.0, 0.0, 0
    for batch in data.batches:
        logits = model.apply({"params": params}, batch["text"], False)
        each = -np.take_along_axis(
            np.asarray(nn.log_softmax(logits)), batch["text"][..., None], axis=-1
        )[..., 0]
        valid = np.arange(6) < batch["text_length"][:, None]
        nats += each[valid].sum()
        labels += valid.sum()
        present = int((batch["text_length"] > 0).sum())
        # The toy's distance to the average is 0 for the average itself.
        by_batch += present * each[valid].mean()
        rows += present
    last = lines(tmp_path)[3]
    assert last["validation/loss/text"] == pytest.approx(nats / labels, rel=1e-5)
    assert last["validation/loss"] == pytest.approx(by_batch / rows, rel=1e-5)
    assert "validation/wer" not in last and last["validation_seconds"] > 0
    assert sorted(lines(tmp_path)) == [2, 3]


def test_scores_by_language_and_the_best_checkpoint(toy_asr, decoder, tmp_path, caplog):
    # Validations after the steps 2, 4, 6 and 7.
    decoder["errors"] = [4, 2, 3, 2]
    caplog.set_level(logging.INFO)
    train(toy_asr(), tmp_path, batches=toy_asr.batches, validation_samples={"paired": sample()})
    lengths = np.concatenate([batch["text_length"] for batch in sample().batches])
    written = lines(tmp_path)
    for step, errors in ((2, 4), (4, 2), (6, 3), (7, 2)):
        assert written[step]["validation/wer"] == pytest.approx(100 * errors / lengths.sum())
    # Of the four rows that lose a word, two are German.
    assert written[2]["validation/wer/de"] == pytest.approx(100 * 2 / lengths[::2].sum())
    assert written[2]["validation/wer/en"] == pytest.approx(100 * 2 / lengths[1::2].sum())
    # Equal is not better: the best is that of step 4, kept although only the newest one is.
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "7"]
    best = json.loads((tmp_path / "best_checkpoint.json").read_text())
    assert (best["step"], best["metric"], best["mode"]) == (4, "validation/wer", "min")
    assert find_checkpoint(tmp_path / "best").name == "4"
    assert any(m.startswith("validation of step 4: ") and "wer" in m for m in caplog.messages)


def test_the_best_checkpoint_outlives_restarts(toy_asr, decoder, tmp_path):
    decoder["errors"] = [1, 3, 2, 0]
    options = {"batches": toy_asr.batches, "validation_samples": {"paired": sample()}}
    train(toy_asr(steps=2), tmp_path, **options)
    assert find_checkpoint(tmp_path / "best").name == "2"
    train(toy_asr(steps=5, checkpoint_every=3), tmp_path, **options)
    assert find_checkpoint(tmp_path / "best").name == "2"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "5"]
    train(toy_asr(steps=6), tmp_path, **options)
    assert find_checkpoint(tmp_path / "best").name == "6"


def test_fine_tuning_may_begin_with_the_best(toy, toy_asr, decoder, tmp_path):
    decoder["errors"] = [1, 2, 3]
    options = {"batches": toy_asr.batches, "validation_samples": {"paired": sample()}}
    train(toy_asr(steps=6), tmp_path / "first", **options)
    still = dataclasses.replace(toy_asr().optimizer, learning_rate=0.0)
    run = toy_asr(
        init_from=str(tmp_path / "first" / "best"),
        optimizer=still,
        steps=1,
        validation=ValidationConfig(),
    )
    state = train(run, tmp_path / "second", batches=toy_asr.batches)
    best = restore_params(tmp_path / "first" / "checkpoints" / "2")
    toy.assert_trees_equal(jax.device_get(state.params), best)


def test_validation_changes_neither_training_nor_itself_on_a_mesh(toy, toy_asr, tmp_path):
    data = {"paired": dataclasses.replace(sample(), vocabulary=None)}
    seen = train(
        toy_asr(steps=3), tmp_path / "seen", batches=toy_asr.batches, validation_samples=data
    )
    blind = toy_asr(steps=3, validation=ValidationConfig())
    toy.assert_trees_equal(train(blind, tmp_path / "blind", batches=toy_asr.batches), seen)
    assert not (tmp_path / "blind" / "best_checkpoint.json").exists()
    meshed = toy_asr(steps=3, partitioning=Partitioning(mesh_shape=(2, 2, 2)))
    train(meshed, tmp_path / "meshed", batches=toy_asr.batches, validation_samples=data)
    here, there = (lines(tmp_path / name)[3] for name in ("meshed", "seen"))
    for name in ("validation/loss", "validation/loss/text"):
        assert here[name] == pytest.approx(there[name], rel=1e-3)


def test_another_metric_may_choose_the_best(toy_asr, tmp_path, caplog):
    data = {"paired": dataclasses.replace(sample(), vocabulary=None)}
    options = {"batches": toy_asr.batches, "validation_samples": data}
    run = toy_asr(steps=4, best_metric="validation/loss/text", best_mode="max")
    train(run, tmp_path / "most", **options)
    losses = {step: line["validation/loss/text"] for step, line in lines(tmp_path / "most").items()}
    best = json.loads((tmp_path / "most" / "best_checkpoint.json").read_text())
    assert best["step"] == max(losses, key=losses.get) and best["value"] == losses[best["step"]]
    run = toy_asr(steps=2, best_metric="validation/los/text")
    train(run, tmp_path / "misspelt", **options)
    assert "Did you mean 'validation/loss/text'" in caplog.text


def test_a_callback_from_elsewhere_stops_and_resumes(toy, tmp_path):
    class Stop(Callback):
        """Stops at a step, and counts log points over restarts."""

        def __init__(self, at):
            self.at, self.points, self.order = at, 0, []

        def on_start(self, trainer):
            self.order.append("start")

        def on_step(self, trainer, info):
            if info.step == self.at:
                trainer.stop(7)

        def log_values(self, trainer, window):
            self.points += 1
            return {"points": float(self.points), "mean": window.means["loss"]}

        def on_end(self, trainer):
            self.order.append("end")

        def state(self):
            return {"points": self.points}

        def load(self, state):
            self.points = state["points"]

    first = Stop(at=3)
    with pytest.raises(SystemExit) as caught:
        train(toy.run(), tmp_path, batches=toy.batches, callbacks=[first])
    assert caught.value.code == 7 and first.order == ["start", "end"]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]
    train(toy.run(callbacks=[Stop(at=-1)]), tmp_path, batches=toy.batches)
    written = lines(tmp_path)
    assert {step: line["points"] for step, line in written.items()} == {2: 1, 4: 2, 6: 3}
    assert written[6]["mean"] == written[6]["loss"]
    with pytest.raises(UserError, match="Two callbacks have the name 'stop'"):
        train(toy.run(), tmp_path / "new", batches=toy.batches, callbacks=[first, Stop(at=1)])
    with pytest.raises(UserError, match=r"callbacks is the class Stop, .*write @Stop\(\)"):
        toy.run(callbacks=[Stop])
    with pytest.raises(UserError, match=r"callbacks has .*, which is no Callback"):
        toy.run(callbacks=[object()])


@pytest.mark.parametrize(
    ("settings", "told"), [({"every": -1}, "every is -1"), ({"examples": 0}, "examples is 0")]
)
def test_settings_that_cannot_be(settings, told):
    with pytest.raises(UserError, match=told):
        ValidationConfig(**settings)


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("validation/loss", "min"),
        ("validation/wer/de", "min"),
        ("validation/bleu", "max"),
        ("validation/st/bleu/de-en", "max"),
        ("validation/masked_accuracy", "max"),
    ],
)
def test_metrics_say_which_end_of_them_is_the_better(metric: str, mode: str) -> None:
    from maestro_jax.training.checkpointer import _best_mode

    assert _best_mode(metric) == mode
