"""The shipped runs of the paper: its numbers, as they are reported of arXiv 2204.03409."""

from __future__ import annotations

import dataclasses
import functools

import jax
import pytest
from narrow_model import NARROW

from maestro_jax.cli.run_summary import phases_text
from maestro_jax.gin_utils import gin_config
from maestro_jax.modules.duration import SubwordDurations
from maestro_jax.objectives.curriculum import weight_at
from maestro_jax.planning.estimate import RunPhase, run_phases
from maestro_jax.training import parameter_trees

RUNS = ("speechstew", "voxpopuli", "covost2")
TRANSLATIONS = ("mt", "st")


@functools.cache
def paper_run(name: str):
    """A run as it is shipped, with nothing set by hand."""
    return gin_config.parse_and_build([f"runs/paper_{name}.gin"])


@pytest.mark.parametrize("name", RUNS)
def test_the_curriculum(name: str) -> None:
    """500k steps of speech, another 15k with pairs, another 300k with text: 815k."""
    run = paper_run(name)
    assert run.steps == 815_000
    first, second, third = run_phases(run)
    assert first == RunPhase(begins=0, steps=500_000, streams=("speech",))
    assert second == RunPhase(begins=500_000, steps=15_000, streams=("speech", "paired"))
    assert (third.begins, third.steps) == (515_000, 300_000)
    translated = TRANSLATIONS if name == "covost2" else ()
    assert third.streams == ("speech", "paired", "text", *translated)


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("speechstew", {"speech": 256, "text": 512, "paired": 256}),
        ("voxpopuli", {"speech": 1024, "text": 1024, "paired": 256}),
        ("covost2", {"speech": 1024, "text": 8192, "paired": 512}),
    ],
)
def test_the_batches(name: str, batches: dict[str, int]) -> None:
    streams = paper_run(name).streams
    assert {stream: streams[stream].batch_size for stream in batches} == batches
    assert set(streams) - set(batches) == ({*TRANSLATIONS} if name == "covost2" else set())
    for stream in streams.values():
        assert stream.mixture.startswith(f"maestro_{name}_")


@pytest.mark.parametrize("name", RUNS)
def test_the_optimizer(name: str) -> None:
    """mSLAM's: Adam, 6e-4 after 40k updates, then the inverse square root; averages of 0.9999."""
    run = paper_run(name)
    assert type(run.optimizer).__name__ == "AdamConfig"
    rates = [float(run.optimizer.schedule(n - 1)) for n in (20_000, 40_000, 160_000, 640_000)]
    assert rates == pytest.approx([3e-4, 6e-4, 3e-4, 1.5e-4])
    assert run.ema_decay == 0.9999


def test_the_model() -> None:
    model = paper_run("voxpopuli").model
    assert model.speech_encoder.stack.layers == 6
    assert model.shared_encoder.stack.layers == 18
    for stack in (model.speech_encoder.stack, model.shared_encoder.stack):
        assert (stack.features, stack.hidden, stack.heads, stack.kernel_size) == (1024, 4096, 8, 5)
    text, durations, refiner = model.text_encoder, model.duration_model, model.refiner
    assert (text.conv_layers, text.conv_kernel, text.features, text.layers) == (3, 5, 512, 6)
    assert (durations.blocks, durations.kernel_size) == (4, 3)
    assert (refiner.layers, refiner.heads, refiner.kernel_size) == (2, 8, 17)
    decoder = model.decoder
    assert (decoder.layers, decoder.units, decoder.joint_features) == (2, 1280, 640)
    quantizer = model.quantizer
    assert (quantizer.codes, quantizer.code_features) == (1024, 1024)
    assert float(quantizer.temperature(0)) == pytest.approx(2.0)
    # 2 x 0.999995^n reaches 0.1 after ln(20) / 5.0000125e-6 = 599145 steps.
    assert 0.1 < float(quantizer.temperature(599_000)) < 0.1001
    assert float(quantizer.temperature(600_000)) == pytest.approx(0.1)


@pytest.mark.parametrize("name", RUNS)
def test_the_losses(name: str) -> None:
    """Masks and negatives are w2v-BERT's, and so is the weight of its diversity loss."""
    objective = paper_run(name).objective
    masks = objective.self_supervised
    assert (masks.mask_probability, masks.mask_span) == (0.065, 10)
    assert (masks.distractors, masks.temperature) == (100, 0.1)
    weights = {term: float(weight_at(weight, 0)) for term, weight in objective.term_weights.items()}
    assert weights.pop("diversity") == 0.1
    assert set(weights.values()) == {1.0}
    assert objective.align_with_ema
    assert type(objective.durations).__name__ == "Learned"


@pytest.mark.parametrize("name", RUNS)
def test_texts_have_the_room_of_pairs(name: str) -> None:
    """25 frames a second, and a letter in each sixteenth of a second."""
    run = paper_run(name)
    for stream in run.streams.values():
        assert stream.audio_samples in (0, 32 * 16_000)
        assert {stream.text_tokens, stream.translation_tokens} <= {0, 32 * 16}
    assert run.objective.max_text_frames == 32 * 25
    # Letters: of 14 European languages, or of the languages of mC4 (mSLAM has 4096 of 101).
    assert run.model.vocab_size == (4096 if name == "covost2" else 256)


@pytest.mark.parametrize("model", ["tiny", "xl"])
@pytest.mark.parametrize("told", [False, True])
def test_the_encoders_are_told_the_language_together_or_not_at_all(model: str, told: bool) -> None:
    files = ["runs/pretrain.gin", f"models/{model}.gin", "objectives/maestro.gin"]
    bindings = {"STEPS": "9"} | ({"SOURCE_LANGUAGES": "64"} if told else {})
    run = gin_config.parse_and_build([*files, "data/minivox_tiny.gin"], bindings)
    params = parameter_trees.unbox(run.abstract_state().params)
    names = {name for name, _ in parameter_trees.named_leaves(params)}
    # The language to write, which translation asks for.
    names.remove("shared_encoder/language_embedding/embedding")
    parts = {name.split("/")[0] for name in names if "language" in name or "source_emb" in name}
    assert parts == ({"speech_encoder", "text_encoder", "shared_encoder"} if told else set())


@pytest.mark.parametrize(
    ("objective", "bindings"),
    [
        (
            "maestro",
            {
                "TextMasks.on_paired": "True",
                "DURATIONS": "@duration_sources.SubwordGaussian()",
            },
        ),
        ("maestro_bestrq", {"CODES": "8", "CODEBOOKS": "1"}),
        ("w2v_bert", {}),
        ("wav2vec2", {}),
        ("best_rq", {"CODES": "8"}),
        ("slam", {}),
        ("mslam", {}),
        ("speech_recognition_ctc", {"TRANSDUCER_WEIGHT": "0.3"}),
        ("speech_translation", {}),
    ],
)
def test_what_is_said_of_a_stream_is_what_is_computed(objective: str, bindings) -> None:
    """The terms of a batch of one stream are those that are printed for it."""
    files = ["runs/pretrain.gin", "models/tiny.gin", f"objectives/{objective}.gin"]
    run = gin_config.parse_and_build(
        [*files, "data/minivox_tiny.gin"], NARROW | {"STEPS": "9"} | bindings
    )
    if "DURATIONS" in bindings:
        model = run.model.clone(subword_durations=SubwordDurations(vocab_size=64))
        run = dataclasses.replace(run, model=model)
    shapes = run.batch_shapes()
    params = parameter_trees.unbox(run.abstract_state().params)
    for stream in run.used_streams:

        def terms(params, batch):
            rng = jax.random.key(0)
            return run.objective.loss_terms(run.model, params, params, batch, rng=rng, step=0)[0]

        traced = jax.eval_shape(terms, params, {stream: shapes[stream]})
        assert set(traced) == set(run.objective.loss_weights[stream]), stream


def test_the_phases_in_words() -> None:
    lines = phases_text(paper_run("voxpopuli")).splitlines()
    speech = "1024 contrastive x 1, diversity x 0.1, masked_prediction x 1"
    paired = "256 transducer x 1, matching x 1, duration x 1"
    assert [" ".join(line.split()) for line in lines[3:]] == [
        f"0 500000 speech {speech}",
        f"500000 15000 speech {speech}",
        f"500000 15000 paired {paired}",
        f"515000 300000 speech {speech}",
        f"515000 300000 paired {paired}",
        "515000 300000 text 1024 aligned_masked_lm x 1",
    ]


def test_gates_and_schedules_in_words() -> None:
    files = ["runs/paper_speechstew.gin", "objectives/maestro_gated.gin"]
    run = gin_config.parse_and_build(files, {"WEIGHTING": "@weighting.UncertaintyWeighting()"})
    *_, text, gates, learned = phases_text(run).splitlines()
    assert text.split()[:4] == ["515000", "300000", "text", "512"]
    assert text.endswith("aligned_masked_lm x 0@515000..1@517000")
    # Translation, which this run does not have, has a gate as well.
    assert gates.startswith("text waits for: paired/alignment_entropy below 1.1, paired/")
    assert learned.endswith("UncertaintyWeighting")


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("speechstew", {"paired": {"transducer": 1.0}}),
        ("voxpopuli", {"paired": {"transducer": 1.0}}),
        ("covost2", {"st": {"st": 1.0}, "mt": {"mt": 5.0}}),
    ],
)
def test_fine_tuning(name: str, weights: dict[str, dict[str, float]]) -> None:
    """Batches of 256, mSLAM's rates and, for translation, its decoder and its weight of MT."""
    run = gin_config.parse_and_build([f"runs/paper_{name}_finetune.gin"], {"INIT_FROM": "None"})
    assert {stream: run.objective.loss_weights[stream] for stream in run.streams} == weights
    assert {stream.batch_size for stream in run.streams.values()} == {256}
    for group, peak, warmup in (("encoder", 3e-4, 5000), ("decoder", 1e-3, 1500)):
        rates = [float(run.optimizer.group_schedules(n - 1)[group]) for n in (warmup // 2, warmup)]
        assert rates == pytest.approx([peak / 2, peak])
    # What pretraining gives fits: the model is the same, but for a head.
    pretrained = paper_run(name).model
    assert run.model.clone(translation_decoder=None, parent=None) == pretrained.clone(parent=None)
    decoder = run.model.translation_decoder
    assert (decoder is not None) == (name == "covost2")
    if decoder is not None:
        assert (decoder.layers, decoder.features, decoder.dropout) == (6, 512, 0.1)
