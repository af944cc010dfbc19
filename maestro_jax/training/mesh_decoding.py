"""Decoding on a device mesh: the same for validation, evaluation and planning."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.hypotheses import Hypotheses
from maestro_jax.decoding.speech import decode_speech, decode_text
from maestro_jax.errors import UserError
from maestro_jax.modules.maestro import Maestro
from maestro_jax.objectives.forward import audio_samples, default_max_text_frames

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun


def longest_audio(run: TrainRun) -> int:
    """Returns the samples of the longest audio that the run's model was trained on.

    Raises:
        UserError: The run has no stream with audio.
    """
    samples = [stream.audio_samples for stream in run.streams.values() if stream.audio_samples]
    if not samples:
        raise UserError("the run has no stream with audio; its model cannot transcribe.")
    return max(samples)


def longest_text(run: TrainRun) -> int:
    """Returns the tokens of the longest text or translation of any stream of the run."""
    return max(max(s.text_tokens, s.translation_tokens) for s in run.streams.values())


def jitted_decoding(
    run: TrainRun,
    *,
    beam_size: int = 1,
    fusion: Fusion | None = None,
    decoder: str = "transducer",
    length_alpha: float = 0.6,
    blank_penalty: float = 0.0,
    written: bool = False,
) -> Any:
    """Jits encoders and search; trace them inside ``partitioning.activate(mesh)``.

    Args:
        run: The run that trained the model.
        beam_size: Hypotheses in the beam; 1 without fusion is the greedy search.
        fusion: A language model and phrases to rank hypotheses with.
        decoder: `transducer`, `ctc` or `attention`.
        length_alpha: Exponent of the attention decoder's length normalisation.
        blank_penalty: Nats that are subtracted from the logit of the blank.
        written: Whether text is translated, instead of audio transcribed or translated.

    Returns:
        A jitted function of the parameters and of the arrays of `decode_speech` or `decode_text`.
    """
    options: dict[str, Any] = {
        # Twice the longest training text: the model has learned nothing longer.
        "max_labels": 2 * max(longest_text(run), 16),
        "beam_size": beam_size,
        "decoder": decoder,
        "length_alpha": length_alpha,
    }
    model = cast(Maestro, run.model)
    decode: Any = functools.partial(decode_speech, model, **options)
    if written:
        frames = run.objective.max_text_frames
        if frames is None:
            frames = default_max_text_frames(run.model, audio_samples(run.batch_shapes()))
        # A text that is cut loses the end of its translation, so there is room for twice what was
        # trained on, as there is for what is written.
        decode = functools.partial(decode_text, model, max_text_frames=2 * frames, **options)
    # Tables of a language model and of phrases are arguments: as constants they would be a part of
    # the program. Numbers are arguments too, so that one program serves for all of them.
    arguments: dict[str, Any] = {}
    if blank_penalty:
        arguments["blank_penalty"] = np.float32(blank_penalty)
    changed: dict[str, Any] = {}
    if fusion is not None:
        tables = {name: getattr(fusion, name) for name in ("lm", "phrases")}
        changed = {name: table for name, table in tables.items() if _is_arrays(table)}
        changed |= {name: np.float32(getattr(fusion, name)) for name in _traced_numbers(fusion)}
    if not arguments and not changed:
        return jax.jit(functools.partial(decode, fusion=fusion))
    arguments["fusion"] = changed

    def decode_with(arguments: dict[str, Any], params: Any, **inputs: Any) -> Hypotheses:
        options = {**arguments}
        changed = options.pop("fusion")
        own = None if fusion is None else dataclasses.replace(fusion, **changed)
        return decode(params, fusion=own, **options, **inputs)

    return functools.partial(jax.jit(decode_with), arguments)


def program_key(
    *,
    beam_size: int,
    fusion: Fusion | None,
    decoder: str,
    length_alpha: float,
    blank_penalty: float,
) -> tuple:
    """Returns what `jitted_decoding` compiles in of its options.

    Two sets of options with the same key, and with tables of the same sizes, have one program.
    """
    key: tuple = (beam_size, decoder, length_alpha, blank_penalty != 0)
    if fusion is None:
        return key
    traced = _traced_numbers(fusion)
    static = tuple(
        (field.name, value if isinstance(value, (float, int, str)) else id(value))
        for field in dataclasses.fields(fusion)
        if field.name not in traced
        for value in [getattr(fusion, field.name)]
    )
    return (*key, *traced, *static)


def _traced_numbers(fusion: Fusion) -> tuple[str, ...]:
    """Lists the numbers of a fusion that are arguments: those above 0.

    The terms of others are left out, or let a search stop early.
    """
    names = ("weight", "length_bonus", "internal_weight", "phrases_weight")
    return tuple(name for name in names if getattr(fusion, name) > 0)


def _is_arrays(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(isinstance(leaf, jax.Array) for leaf in leaves)
