"""How to search for a transcript or a translation, and with which decoder."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

from maestro_jax.decoding.fusion import INTERNAL_ENCODERS, Fusion, LabelLm
from maestro_jax.decoding.ngram import NgramLm
from maestro_jax.decoding.speech import DECODERS
from maestro_jax.errors import UserError, near_misses
from maestro_jax.inference.language_models import arpa_model, device_model, text_model
from maestro_jax.inference.rescoring import WordLm
from maestro_jax.training.run import TrainRun
from maestro_jax.vocabularies.vocabulary import Vocabulary

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How to search for a transcript.

    Attributes:
        beam_size: Hypotheses kept; 1 without a language model is the greedy search.
        lm_text: A file of text, one sentence a line, that a language model is estimated from.
        lm_arpa: A language model in the ARPA format, in the text's place.
        lm_weight: Of its log-probabilities.
        lm_order: Tokens of the longest n-gram of a model of `lm_text`.
        lm_prune: Its cut-offs, by length of n-grams; see `kneser_ney.estimate`.
        length_bonus: Added for each token, in nats.
        ilm_weight: Of the transducer's internal language model, which is subtracted.
        ilm_encoder: What stands in the encoder's place in it: `zero` or `mean`; see
            `decoding.fusion`.
        decoder: `transducer`, `ctc` or `attention`; None for the one that the model was trained
            with.
        length_alpha: Exponent of the attention decoder's length normalisation; 0 for none.
    """

    beam_size: int = 1
    lm_text: str | Path | None = None
    lm_arpa: str | Path | None = None
    lm_weight: float = 0.3
    lm_order: int = 4
    lm_prune: tuple[int, ...] = ()
    length_bonus: float = 0.0
    ilm_weight: float = 0.0
    ilm_encoder: str = "zero"
    decoder: str | None = None
    length_alpha: float = 0.6

    def language_model(self, vocabulary: Vocabulary, vocab_size: int) -> NgramLm | WordLm | None:
        """The language model that helps the search, or afterwards ranks what it has found.

        Args:
            vocabulary: Text to tokens.
            vocab_size: Tokens that the decoder can write, which may be more.

        Raises:
            UserError: The text or the model cannot be read, or belongs to another vocabulary; or a
                model over words shall rank a single hypothesis.
        """
        if self.lm_text is not None and self.lm_arpa is not None:
            raise UserError("--lm_text and --lm_arpa are two language models; give one")
        if self.lm_text is not None:
            model = text_model(self.lm_text, vocabulary, order=self.lm_order, prune=self.lm_prune)
        elif self.lm_arpa is not None:
            found = arpa_model(self.lm_arpa, vocabulary)
            if isinstance(found, WordLm):
                if self.beam_size == 1:
                    raise UserError(
                        f"{self.lm_arpa} is a language model over words, which ranks the "
                        "hypotheses of a beam: give --beam_size 8"
                    )
                return found
            model = found
        else:
            return None
        return device_model(model, vocabulary, vocab_size)

    def fusion(self, lm: LabelLm | WordLm | None, decoder: str = "transducer") -> Fusion | None:
        """What the search adds to the scores; None if that is nothing.

        Args:
            lm: The language model. One over words has no part in the search.
            decoder: What is searched; only the transducer has an internal language model.

        Raises:
            UserError: A number is out of its range, or a choice unknown or impossible.
        """
        if self.beam_size < 1:
            raise UserError(f"the beam size must be at least 1, not {self.beam_size}")
        if not self.lm_weight >= 0:
            raise UserError(f"the language model's weight must not be negative: {self.lm_weight}")
        if not 0 <= self.length_alpha < math.inf:
            raise UserError(f"length_alpha must not be negative, and is {self.length_alpha}")
        if not 0 <= self.ilm_weight < math.inf:
            raise UserError(f"--ilm_weight must not be negative, and is {self.ilm_weight}")
        if self.ilm_encoder not in INTERNAL_ENCODERS:
            raise UserError(
                f"unknown --ilm_encoder {self.ilm_encoder!r}; choose one of "
                f"{', '.join(INTERNAL_ENCODERS)}.{near_misses(self.ilm_encoder, INTERNAL_ENCODERS)}"
            )
        if self.ilm_weight and decoder != "transducer":
            raise UserError(
                f"--ilm_weight subtracts the internal language model of a transducer, and the "
                f"{decoder} decoder has none: leave it out, or choose --decoder transducer"
            )
        in_search = None if isinstance(lm, WordLm) else lm
        if in_search is None and not self.length_bonus and not self.ilm_weight:
            return None
        return Fusion(
            lm=in_search,
            weight=self.lm_weight,
            length_bonus=self.length_bonus,
            internal_weight=self.ilm_weight,
            internal_encoder=self.ilm_encoder,
        )


def choose_decoder(run: TrainRun, asked: str | None) -> str:
    """The decoder to search with.

    Args:
        run: The run that trained the model.
        asked: `transducer`, `ctc` or `attention`; None for what the run's objective trains (the
            transducer, if it trains that as well).

    Returns:
        Its name.

    Raises:
        UserError: The name is unknown, or the model has no such decoder.
    """
    trained = getattr(run.objective, "decoders", ("transducer",))
    if asked is None:
        return trained[0]
    if asked not in DECODERS:
        raise UserError(
            f"unknown decoder {asked!r}; choose one of {', '.join(DECODERS)}."
            f"{near_misses(asked, DECODERS)}"
        )
    there = tuple(run.model.vocab_sizes)
    if asked not in there:
        raise UserError(
            f"the model has no {asked} decoder; it has {' and '.join(there)}: leave --decoder out, "
            "or fine-tune a model that has one."
        )
    if asked not in trained:
        log.warning("the run trained %s and not the %s decoder", " and ".join(trained), asked)
    return asked
