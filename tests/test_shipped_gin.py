"""Every gin file that the package carries: read, built, and traced without a device's work."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import jax
import pytest

from maestro_jax.batches import batch_shapes
from maestro_jax.gin_utils import gin_config
from maestro_jax.gin_utils.gin_source import config_root
from maestro_jax.minivox import config as minivox_config
from maestro_jax.modules.duration import SubwordDurations
from maestro_jax.training import parameter_trees
from maestro_jax.training.partitioning import Partitioning

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODELS = sorted(path.name for path in (config_root() / "models").glob("*.gin"))
HEADS = sorted(path.name for path in (config_root() / "models" / "heads").glob("*.gin"))
OBJECTIVES = sorted(path.name for path in (config_root() / "objectives").glob("*.gin"))
DATA = sorted(path.name for path in (config_root() / "data").glob("*.gin"))
OVER_DATA = sorted(
    str(path.relative_to(config_root() / "data"))
    for path in (config_root() / "data").glob("*/*.gin")
)
# Those of studies describe grids (tests/experiments/test_study.py), and the runs of their cells.
RUNS = sorted(
    str(path.relative_to(config_root() / "runs"))
    for path in (config_root() / "runs").rglob("*.gin")
    if not path.name.startswith("study") and path.name != "methods.gin"
)


def build(
    run="pretrain.gin",
    model="tiny.gin",
    objective="maestro.gin",
    data="minivox_tiny.gin",
    head=None,
):
    files = [f"runs/{run}", f"models/{model}", f"objectives/{objective}", f"data/{data}"]
    files += [f"models/heads/{head}"] if head else []
    return gin_config.parse_and_build(files, {"STEPS": "1000", "WARMUP_STEPS": "10"})


def abstract_state_is_sharded(run) -> None:
    mesh = Partitioning(mesh_shape=(2, 2, 2)).mesh(jax.devices()[:8])
    with run.partitioning.activate(mesh):
        abstract = run.abstract_state()
    specs = jax.tree.map(lambda s: s.spec, run.partitioning.state_shardings(mesh, abstract).params)
    sharded = [spec for spec in jax.tree.leaves(specs) if any(axis for axis in spec)]
    assert len(sharded) > len(jax.tree.leaves(specs)) / 2


@pytest.mark.parametrize("model", MODELS)
def test_models(model: str) -> None:
    abstract_state_is_sharded(build(model=model))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives(objective: str) -> None:
    run = build(objective=objective)
    assert set(run.objective.active_streams(10**9)) <= set(run.objective.streams)
    assert run.used_streams
    # What an objective trains to write, the model has.
    assert set(run.objective.decoders) <= set(run.model.vocab_sizes)


@pytest.mark.parametrize("run", ["demo_pretrain.gin", "low_resource_pretrain.gin"])
@pytest.mark.parametrize(
    ("method", "differs"),
    {
        "maestro.gin": set(),
        "maestro_no_matching.gin": {"matching_weight"},
        "maestro_fixed_repetition.gin": {"durations", "duration_weight"},
        "joist.gin": {"matching", "durations", "text_masks"},
        "best_alignment.gin": {"matching", "durations"},
        "astra.gin": {"matching", "durations", "text_masks"},
        "most.gin": {"self_supervised"},
        "maestro_u.gin": set(),
    }.items(),
)
def test_methods_come_on_top_of_a_run_and_leave_the_rest(method, differs, run) -> None:
    plain = gin_config.parse_and_build([f"runs/{run}"])
    found = gin_config.parse_and_build([f"runs/{run}", f"objectives/{method}"])
    fields = [field.name for field in dataclasses.fields(plain.objective)]
    changed = {
        name for name in fields if getattr(found.objective, name) != getattr(plain.objective, name)
    }
    assert changed == differs
    assert found.objective.curriculum.phases[1].start_step == 10
    for field in ("optimizer", "streams", "steps", "ema_decay"):
        assert getattr(found, field) == getattr(plain, field)
    model = found.model.clone(parent=None)
    if method == "maestro_u.gin":
        assert model.shared_encoder.stack.adapter_features == 32
        assert model.text_encoder.languages == model.shared_encoder.languages
    elif method != "most.gin":
        assert model == plain.model.clone(parent=None)
    # Fine-tuning goes on from any of them: nothing of a method is left in the objective.
    assert set(found.objective.decoders) <= set(model.vocab_sizes)


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str) -> None:
    """A head comes on top of any model, and leaves the rest of it as it is."""
    without = build().model
    model = build(model="tiny.gin", head=head).model
    decodes = head in ("attention.gin", "ctc.gin")
    assert len(model.vocab_sizes) == len(without.vocab_sizes) + decodes
    assert model.vocab_size == without.vocab_size
    optional = {field.name for field in dataclasses.fields(model) if field.default is None}
    added = {name for name in optional if getattr(model, name) != getattr(without, name)}
    assert added
    assert model.clone(**dict.fromkeys(added | {"parent", "name"})) == without.clone(
        **dict.fromkeys(added | {"parent", "name"})
    )


@pytest.mark.parametrize("data", DATA)
def test_data(data: str) -> None:
    from maestro_jax.data.task_registry import get_task_or_mixture

    run = build(data=data)
    batch_shapes(run.streams)
    for stream in run.streams.values():
        get_task_or_mixture(stream.mixture)


@pytest.mark.parametrize("data", ["voxpopuli.gin", "covost2.gin", "speechstew.gin"])
def test_buckets_and_augmentation_come_on_top_of_data(data: str) -> None:
    files = ["runs/pretrain.gin", "models/tiny.gin", "objectives/maestro.gin", f"data/{data}"]
    files += [f"data/{path}" for path in OVER_DATA]
    streams = gin_config.parse_and_build(files, {"STEPS": "9", "WARMUP_STEPS": "1"}).streams
    plain = build(data=data).streams
    for name, config in streams.items():
        changed = name in ("speech", "paired")
        assert (config.augmentation is not None) == changed
        shapes = config.shapes()
        assert len(shapes) == (4 if changed else 1)
        assert dataclasses.replace(shapes[-1], augmentation=None) == plain[name]
        assert {shape.batch_size for shape in shapes} == {plain[name].batch_size}


@pytest.mark.parametrize(
    ("data", "batches"),
    [
        ("speechstew.gin", {"speech": 256, "text": 512, "paired": 256}),
        ("voxpopuli.gin", {"speech": 1024, "text": 1024, "paired": 256}),
        ("voxpopuli_mc4.gin", {"speech": 1024, "text": 8192, "paired": 512}),
        ("covost2.gin", {"speech": 1024, "text": 8192, "paired": 512}),
    ],
)
def test_batches_are_those_of_the_paper(data: str, batches: dict[str, int]) -> None:
    """Examples a step, as they are reported of arXiv 2204.03409."""
    streams = build(data=data).streams
    assert {name: streams[name].batch_size for name in batches} == batches
    experiment = data.removesuffix(".gin")
    mixtures = {name: config.mixture.removesuffix("_upsampled") for name, config in streams.items()}
    # The speech of the runs with mC4 is that of those without.
    speech = mixtures.pop("speech")
    assert speech == f"maestro_{experiment.removesuffix('_mc4')}_speech"
    assert mixtures == {name: f"maestro_{experiment}_{name}" for name in mixtures}


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str) -> None:
    files = [f"runs/{name}"]
    bindings = {}
    if "INIT_FROM" in gin_config.macros(files):
        bindings["INIT_FROM"] = "None"
    if name in ("pretrain.gin", "finetune.gin", "finetune_new_vocabulary.gin"):
        files += ["objectives/maestro.gin"]
    if len(files) > 1 or name.startswith("adapt_"):
        files += ["models/tiny.gin", "data/minivox_tiny.gin"]
        bindings |= {"STEPS": "100000", "WARMUP_STEPS": "10"}
    if name == "paper.gin":
        files += ["data/minivox_tiny.gin"]
    run = gin_config.parse_and_build(files, bindings)
    assert run.steps > 0


@pytest.mark.parametrize(
    ("data", "frames"),
    # 3.2 and 32 seconds: 318 and 3198 windows of 25 ms every 10 ms, halved twice, rounded up.
    [("minivox_small.gin", 80), ("voxpopuli.gin", 800), ("covost2.gin", 800)],
)
@pytest.mark.parametrize("objective", ["maestro.gin", "speech_translation.gin"])
def test_texts_have_the_room_of_the_longest_speech(objective, data, frames) -> None:
    if objective == "speech_translation.gin" and data == "voxpopuli.gin":
        pytest.skip("no translations")
    assert build(objective=objective, data=data).objective.max_text_frames == frames


def test_fine_tuning_has_the_rates_of_mslam() -> None:
    """arXiv 2202.01374: encoder 3e-4 after 5k updates, decoder 1e-3 after 1.5k."""
    files = [
        "runs/finetune.gin",
        "models/tiny.gin",
        "objectives/speech_recognition.gin",
        "data/minivox_tiny.gin",
    ]
    bindings = {"STEPS": "100000", "INIT_FROM": "None"}
    optimizer = gin_config.parse_and_build(files, bindings).optimizer
    for group, peak, warmup in (("encoder", 3e-4, 5000), ("decoder", 1e-3, 1500)):
        rates = [float(optimizer.group_schedules(n - 1)[group]) for n in (warmup // 2, warmup)]
        assert rates == pytest.approx([peak / 2, peak])
    run = gin_config.parse_and_build(
        files, bindings | {"FREEZE_ENCODER_STEPS": "2000", "ENCODER_LEARNING_RATE": "2e-4"}
    )
    rates = [float(run.optimizer.group_schedules(n)["encoder"]) for n in (1999, 6999)]
    assert rates == pytest.approx([0.0, 2e-4])
    owners = run.optimizer.by_group(parameter_trees.unbox(run.abstract_state().params))
    names = {
        group: {name.split("/")[0] for name, _ in parameter_trees.named_leaves(tree)}
        for group, tree in owners.items()
    }
    assert names["decoder"] == {"decoder"}
    assert {"speech_encoder", "shared_encoder", "subsampling"} <= names["encoder"]


def test_the_page_on_fine_tuning_names_what_depends_on_the_vocabulary() -> None:
    """Those parameters whose shape follows its size."""
    page = (ROOT / "docs" / "how_to" / "finetune.md").read_text()
    line = next(line for line in page.splitlines() if "another vocabulary of the same" in line)
    pattern = re.search(r'INIT_EXCLUDE = \("(.*)",\)', line)[1].replace("\\|", "|")

    def shapes(size: str) -> dict[str, tuple[int, ...]]:
        files = ["runs/finetune.gin", "models/tiny.gin", "models/heads/ctc.gin"]
        files += ["models/heads/attention.gin", "objectives/speech_recognition.gin"]
        files += ["data/minivox_tiny.gin"]
        bindings = {"STEPS": "100000", "INIT_FROM": "None", "VOCAB_SIZE": size}
        params = gin_config.parse_and_build(files, bindings).abstract_state().params
        leaves = parameter_trees.named_leaves(parameter_trees.unbox(params))
        return {name: leaf.shape for name, leaf in leaves}

    one, other = shapes("64"), shapes("61")
    assert {name for name in one if one[name] != other[name]} == {
        name for name in one if re.fullmatch(pattern, name)
    }


def test_a_new_vocabulary_leaves_all_that_depends_on_the_old_one_behind() -> None:
    files = [
        "runs/finetune_new_vocabulary.gin",
        "models/tiny.gin",
        "models/heads/ctc.gin",
        "models/heads/attention.gin",
        "models/heads/tokens.gin",
        "objectives/speech_recognition.gin",
        "data/minivox_tiny.gin",
    ]
    run = gin_config.parse_and_build(files, {"STEPS": "100000", "INIT_FROM": "None"})
    model = run.model.clone(subword_durations=SubwordDurations(vocab_size=64))
    run = dataclasses.replace(run, model=model)

    def is_left(name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in run.init_exclude)

    boxes = run.abstract_state().params
    leaves = jax.tree_util.tree_flatten_with_path(boxes, is_leaf=parameter_trees.is_box)[0]
    depends = {
        parameter_trees.parameter_name(parameter_trees.path_keys(path)): "vocab" in box.names
        for path, box in leaves
    }
    assert sum(depends.values()) > 5
    assert all(is_left(name) for name, does in depends.items() if does)
    # The prediction network read the old tokens; encoders did not.
    assert all(is_left(name) for name in depends if name.startswith("decoder/lstm"))
    assert not any(is_left(name) for name in depends if "encoder/stack" in name)


@pytest.mark.parametrize(
    "folder", ["models", "models/heads", "objectives", "objectives/defaults", "data", "runs"]
)
def test_each_file_opens_with_what_it_is_for(folder: str) -> None:
    for path in (config_root() / folder).glob("*.gin"):
        head = path.read_text().split("\n\n")[0]
        assert head.startswith("# "), path.name
        assert "# Required to be set: " in head, path.name
        assert "# Commonly overridden: " in head, path.name


@pytest.mark.parametrize(
    "binding",
    [
        ("WEIGHTING", "@weighting.UncertaintyWeighting()"),
        ("WEIGHTING", "@weighting.GradientNormWeighting()"),
        ("DURATIONS", "@duration_sources.RandomRepetition()"),
        ("MaestroPretraining.translation_packing", '"concatenated"'),
        ("Matching.form", '"infonce"'),
        ("TextMasks.on_paired", "True"),
    ],
)
def test_choices_of_the_objective_from_the_command_line(binding: tuple[str, str]) -> None:
    """What the head of the file says can be overridden is, without a file of one's own."""
    files = [
        "runs/pretrain.gin",
        "models/tiny.gin",
        "objectives/maestro.gin",
        "data/minivox_tiny.gin",
    ]
    bindings = {"STEPS": "1000", "WARMUP_STEPS": "10"}
    plain = gin_config.parse_and_build(files, bindings).objective
    assert gin_config.parse_and_build(files, bindings | dict([binding])).objective != plain


@pytest.mark.parametrize("corpus", ["TINY", "SMALL", "LOW_RESOURCE"])
def test_the_vocabulary_of_minivox_fits_the_model_of_the_tutorials(corpus: str) -> None:
    run = build(data=f"minivox_{corpus.lower()}.gin")
    assert run.model.vocab_size >= getattr(minivox_config, corpus).vocab_size
