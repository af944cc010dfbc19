"""Measures the real-time factor of decoding a minute of MiniVox, from audio to tokens.

The audio is sentences of the MiniVox test split, synthesised on request, the model that of
`gin/models/tiny.gin`. Random weights emit nothing but blanks, or nothing but labels; the bias of
the blank is therefore adjusted until greedy decoding emits about as many labels per second as
spoken English has letters.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import pathlib
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from rows import Bar, Row, Table
from timing import Contender, ContenderError, progress, take_turns

if TYPE_CHECKING:
    from maestro_jax.modules.maestro import Maestro

GREEDY_BAR = Bar(limit=30.0, on="ours")
BEAM_BAR = Bar(limit=10.0, on="ours")
BEAM = 4
TARGET_RATE = 12.5
"""Labels per second of the random model, about the letters per second of spoken English."""
LONGEST_RATE = 30
"""Maximum number of labels per second."""
_SAMPLE_RATE = 16_000

SINGLE = "one utterance at a time"
BATCH = "one batch"
# Method, batching of the minute, and the bar.
OURS = (
    ("greedy", SINGLE, GREEDY_BAR),
    ("greedy", BATCH, None),
    (f"beam {BEAM}", SINGLE, BEAM_BAR),
    (f"beam {BEAM}", BATCH, None),
    ("encoder alone", SINGLE, None),
)
PEERS = ("jitted loop", "numpy loop")


def measure(seconds: float, repeats: int, model_dir: str | None) -> Table:
    """Measures real-time factors on one core: ours, and a Python loop with the same encoder."""
    title = "Decoding a minute of MiniVox, one core"
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        job = {"audio": str(folder / "audio.npz"), "seconds": seconds, "model_dir": model_dir}
        progress("decoding: speaking the sentences, setting the blank's bias")
        try:
            with Contender("decoding_speed", job | {"method": "set up"}, cores=1) as set_up:
                setting = set_up.report
        except ContenderError as error:
            if not error.missing:
                raise
            return Table(title, "times faster", (), (f"Not measured: {error}",))
        progress(
            f"  {setting['utterances']} utterances, {setting['audio_seconds']:.1f} s; greedy "
            f"writes {setting['rate']:.1f} labels a second"
        )
        contenders: dict[str, Contender] = {}
        remarks: list[str] = []
        for method, handed, _ in (*OURS, *((peer, SINGLE, None) for peer in PEERS)):
            name = f"{method}, {handed}"
            details = {
                "method": method,
                "single": handed == SINGLE,
                "blank_shift": setting["blank_shift"],
                "tokens": str(folder / f"{len(contenders)}.npz"),
            }
            try:
                contender = Contender("decoding_speed", job | details, cores=1)
            except ContenderError as error:
                if not error.missing:
                    raise
                remarks.append(f"{name} was not measured: {error}")
                progress(f"  {remarks[-1]}")
                continue
            contenders[name] = stack.enter_context(contender)
        progress(f"  {repeats} repeats of {len(contenders)} contenders")
        times = take_turns(contenders, repeats)
    audio_seconds = setting["audio_seconds"]
    factor = {name: audio_seconds / timing.best for name, timing in times.items()}
    same = {name: contenders[name].report.get("same_as_set_up") for name in contenders}
    rows = []
    for method, handed, bar in OURS:
        name = f"{method}, {handed}"
        peers = PEERS if method == "greedy" and handed == SINGLE else PEERS[1:]
        for peer in peers if method != "encoder alone" else ("",):
            other = f"{peer}, {SINGLE}"
            if name not in times:
                continue
            note = f"{times[name].best:.3g} s, median {times[name].median:.3g} s"
            if method == "greedy" and other in same:
                note += f"; {same[other]} of {setting['utterances']} transcripts are the same"
            beside = other in factor
            rows.append(
                Row(
                    what=method,
                    size=handed,
                    ours=factor[name],
                    unit="x real time",
                    peer_name=peer if beside else "",
                    peer=factor[other] if beside else None,
                    ratio=factor[name] / factor[other] if beside else None,
                    bar=bar,
                    note=note,
                )
            )
    weights = "trained" if model_dir else "random weights"
    remarks.append(
        f"{setting['utterances']} utterances, {audio_seconds:.1f} s of speech in all, each padded "
        f"to {setting['longest']:.1f} s; {weights}; greedy decoding writes {setting['rate']:.1f} "
        "labels a second. Peer: the same compiled encoder, then a Python loop over frames and "
        "labels, one utterance at a time (benchmarks/plain_decoding.py)."
    )
    return Table(title, "times faster", tuple(rows), tuple(remarks))


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], object]]:
    """Prepares a method; `set up` makes the audio and finds the bias for the others."""
    model, params = _trained(job["model_dir"]) if job["model_dir"] else _random()
    if job["method"] == "set up":
        return _set_up(model, params, job), lambda: None
    with np.load(job["audio"]) as saved:
        audio, lengths, expected = saved["audio"], saved["lengths"], saved["tokens"].tolist()
    params = _shift_blank(params, job["blank_shift"])
    if job["method"] in PEERS:
        run = _plain(model, params, audio, lengths, job["method"])
        return {"same_as_set_up": _number_equal(run(), expected)}, run
    import jax

    rows = [slice(i, i + 1) for i in range(len(audio))] if job["single"] else [slice(None)]
    if job["method"] == "encoder alone":
        decode = _encoder(model)
    else:
        beam = BEAM if job["method"].startswith("beam") else None
        decode = _search(model, _room(audio), beam)

    def run() -> object:
        return jax.block_until_ready([decode(params, audio[row], lengths[row]) for row in rows])

    run()
    return {}, run


def _set_up(model: Any, params: Any, job: dict[str, Any]) -> dict[str, Any]:
    audio, lengths = _speak(job["seconds"])
    audio_seconds = float(lengths.sum()) / _SAMPLE_RATE
    decode = _search(model, _room(audio), None)

    def greedy(shift: float) -> Any:
        return decode(_shift_blank(params, shift), audio, lengths)

    def rate(shift: float) -> float:
        return float(greedy(shift).lengths.sum()) / audio_seconds

    shift = 0.0
    if not job["model_dir"]:
        talkative, silent = -20.0, 20.0
        for _ in range(24):
            shift = (talkative + silent) / 2
            now = rate(shift)
            if abs(now - TARGET_RATE) < 0.25:
                break
            talkative, silent = (shift, silent) if now > TARGET_RATE else (talkative, shift)
    found = greedy(shift)
    np.savez(job["audio"], audio=audio, lengths=lengths, tokens=np.asarray(found.tokens)[:, 0])
    return {
        "blank_shift": shift,
        "rate": rate(shift),
        "utterances": len(audio),
        "audio_seconds": audio_seconds,
        "longest": audio.shape[1] / _SAMPLE_RATE,
    }


def _speak(seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Makes sentences of a total duration: int16 `[batch, samples]`, lengths `[batch]`."""
    from maestro_jax.errors import UserError
    from maestro_jax.minivox.config import SMALL
    from maestro_jax.minivox.corpus import make_example

    pieces: list[np.ndarray] = []
    try:
        while sum(map(len, pieces)) < seconds * _SAMPLE_RATE:
            pieces.append(make_example(SMALL, "paired_en_test", len(pieces)).audio)
    except UserError as error:
        raise ImportError(str(error)) from error
    lengths = np.asarray([len(piece) for piece in pieces], np.int32)
    audio = np.zeros((len(pieces), lengths.max()), np.int16)
    for row, piece in zip(audio, pieces, strict=True):
        row[: len(piece)] = piece
    return audio, lengths


def _room(audio: np.ndarray) -> int:
    return round(LONGEST_RATE * audio.shape[1] / _SAMPLE_RATE)


def _random() -> tuple[Any, Any]:
    """Returns the model of `gin/models/tiny.gin` with its initial parameters."""
    import gin
    import jax

    from maestro_jax.gin_utils import gin_config
    from maestro_jax.modules.maestro import Maestro
    from maestro_jax.training.parameter_trees import unbox

    gin_config.parse(["models/tiny.gin"])
    model = gin.get_configurable(Maestro)()
    return model, unbox(jax.jit(model.init)(jax.random.key(0), {}))["params"]


def _trained(model_dir: str) -> tuple[Any, Any]:
    """Returns the model and the averaged weights of a model directory."""
    from maestro_jax.gin_utils import gin_config
    from maestro_jax.inference.transcriber import Transcriber

    transcriber = Transcriber.from_checkpoint(model_dir, gin_config.load_run(model_dir))
    return transcriber.run.model, transcriber.params


def _shift_blank(params: Any, shift: float) -> Any:
    """Returns the same parameters with another bias of the blank."""
    output = params["decoder"]["output"]
    output = {**output, "bias": output["bias"].at[0].add(shift)}
    return {**params, "decoder": {**params["decoder"], "output": output}}


def _search(model: Any, max_labels: int, beam: int | None) -> Callable[..., Any]:
    """Returns the compiled search, from audio to hypotheses."""
    import jax

    from maestro_jax.decoding.speech import decode_speech

    options: dict[str, Any] = {"max_labels": max_labels}
    if beam is not None:
        if "beam_size" not in inspect.signature(decode_speech).parameters:
            raise ImportError("decode_speech has no beam search here")
        options["beam_size"] = beam
    return jax.jit(functools.partial(decode_speech, model, **options))


def _encoder(model: Maestro) -> Callable[..., Any]:
    """Returns the compiled encoders: `(params, audio, lengths) -> frames, numbers of frames`."""
    import jax

    @jax.jit
    def encode(params: Any, audio: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        bound = model.bind({"params": params})
        features, mask = bound.features(audio, lengths)
        context = bound.encode_shared(bound.encode_speech(features, mask), mask)
        return bound.project_frames(context), mask.sum(axis=1)

    return encode


def _plain(
    model: Any, params: Any, audio: np.ndarray, lengths: np.ndarray, method: str
) -> Callable[[], list[list[int]]]:
    """Returns the Python loop after the compiled encoder."""
    from plain_decoding import jitted_networks, numpy_networks, plain_greedy

    networks = jitted_networks if method == "jitted loop" else numpy_networks
    predict, best, state = networks(model, params)
    encode = _encoder(model)
    room = _room(audio)

    def run() -> list[list[int]]:
        transcripts = []
        for row in range(len(audio)):
            frames, count = encode(params, audio[row : row + 1], lengths[row : row + 1])
            valid = np.asarray(frames)[0, : int(count[0])]
            transcripts.append(plain_greedy(predict, best, state, valid, max_labels=room))
        return transcripts

    return run


def _number_equal(transcripts: list[list[int]], padded: list[list[int]]) -> int:
    """Counts transcripts that equal those of the compiled search, whose rows end in blanks.

    Raises:
        AssertionError: If more than a tenth differ: then it is not the same search. Rounding alone
            may turn a close decision.
    """
    equal = sum(
        ours == [token for token in row if token]
        for ours, row in zip(transcripts, padded, strict=True)
    )
    assert equal >= 0.9 * len(padded), f"only {equal} of {len(padded)} transcripts are the same"
    return equal
