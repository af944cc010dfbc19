"""Configures the search for a transcript or a translation, and chooses the decoder."""

from __future__ import annotations

import dataclasses
import logging
import math

from etils import epath

from maestro_jax.decoding.fusion import INTERNAL_ENCODERS, Fusion, LabelLm
from maestro_jax.decoding.ngram import NgramLm
from maestro_jax.decoding.phrases import PhraseBias, parse_phrases, written_forms
from maestro_jax.decoding.speech import DECODERS
from maestro_jax.errors import UserError, near_misses
from maestro_jax.files import as_path
from maestro_jax.inference.language_models import WordLm, arpa_model, device_model, text_model
from maestro_jax.text.vocabularies import PAD_ID, Vocabulary
from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)

SEARCH_FILE = "search.gin"
"""File of the tuned search in a model directory, of which `eval` and `transcribe` take defaults."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The settings of a search.

    Attributes:
        beam_size: Number of hypotheses kept; 1 without a language model is greedy search.
        lm_text: Text file, one sentence per line, from which a language model is estimated.
        lm_arpa: Language model in the ARPA format, instead of a text.
        lm_weight: Weight of its log-probabilities.
        lm_order: Tokens of the longest n-gram of a model of `lm_text`.
        lm_prune: Its cut-offs, by length of n-grams; see `kneser_ney.estimate`.
        length_bonus: Nats added per token.
        ilm_weight: Weight of the transducer's internal language model, which is subtracted.
        ilm_encoder: Replacement of the encoder's output in it: `zero` or `mean`; see
            `decoding.fusion`.
        decoder: `transducer`, `ctc` or `attention`; None for the one that the run trained.
        length_alpha: Exponent of the attention decoder's length normalisation; 0 for none.
        phrases: File of phrases that raise the scores of hypotheses that contain them: one per
            line, optionally with a tab and a weight.
        phrases_weight: Nats per token of a phrase.
        blank_penalty: Nats that are subtracted from the logit of the blank of a transducer or CTC.
        language_mask: Whether hypotheses have only tokens that their language writes, where it is
            known from the test set.
    """

    beam_size: int = 1
    lm_text: epath.PathLike | None = None
    lm_arpa: epath.PathLike | None = None
    lm_weight: float = 0.3
    lm_order: int = 4
    lm_prune: tuple[int, ...] = ()
    length_bonus: float = 0.0
    ilm_weight: float = 0.0
    ilm_encoder: str = "zero"
    decoder: str | None = None
    length_alpha: float = 0.6
    phrases: epath.PathLike | None = None
    phrases_weight: float = 0.5
    blank_penalty: float = 0.0
    language_mask: bool = False

    def check(self) -> None:
        """Checks what needs neither a model nor its vocabulary.

        Raises:
            UserError: If there are two language models or a file is missing, a number is out of
                its range, or a choice is unknown.
        """
        if self.lm_text is not None and self.lm_arpa is not None:
            raise UserError(
                "--lm_text and --lm_arpa are two language models: give only one of them"
            )
        if self.beam_size < 1:
            raise UserError(f"the beam size must be at least 1, not {self.beam_size}")
        for name in ("lm_weight", "length_alpha", "ilm_weight", "phrases_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("length_bonus", "blank_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"--{name} is {getattr(self, name)}; it must be finite")
        for option in ("--lm_text", "--lm_arpa", "--phrases"):
            file = getattr(self, option.removeprefix("--"))
            if file is not None and not as_path(file).is_file():
                raise UserError(f"there is no file {file} for {option}")
        if self.ilm_encoder not in INTERNAL_ENCODERS:
            raise UserError(
                f"unknown --ilm_encoder {self.ilm_encoder!r}; choose one of "
                f"{', '.join(INTERNAL_ENCODERS)}.{near_misses(self.ilm_encoder, INTERNAL_ENCODERS)}"
            )

    def language_model(self, vocabulary: Vocabulary, vocab_size: int) -> NgramLm | WordLm | None:
        """Builds the language model that takes part in the search or ranks its hypotheses.

        Args:
            vocabulary: The model's vocabulary.
            vocab_size: Number of tokens of the decoder, at least that of the vocabulary.

        Returns:
            A model over pieces, for the search; one over words, for its hypotheses; or None.

        Raises:
            UserError: If the text or the model cannot be read or belongs to another vocabulary, or
                a model over words is given without a beam; see also `check`.
        """
        self.check()
        if self.lm_text is not None:
            model = text_model(self.lm_text, vocabulary, order=self.lm_order, prune=self.lm_prune)
        elif self.lm_arpa is not None:
            arpa = arpa_model(self.lm_arpa, vocabulary)
            if isinstance(arpa, WordLm):
                if self.beam_size == 1:
                    raise UserError(
                        f"{self.lm_arpa} is a language model over words, which ranks the "
                        "hypotheses of a beam: give --beam_size 8"
                    )
                return arpa
            model = arpa
        else:
            return None
        return device_model(model, vocabulary, vocab_size)

    def phrase_list(self) -> dict[str, float]:
        """Reads the phrases; returns the weight of each, empty without a file.

        Raises:
            UserError: If the file cannot be read, or a line of it is not as described.
        """
        if self.phrases is None:
            return {}
        try:
            text = as_path(self.phrases).read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the phrases {self.phrases}: {error}") from error
        return parse_phrases(text.split("\n"), str(self.phrases))

    def phrase_bias(self, vocabulary: Vocabulary, vocab_size: int) -> PhraseBias | None:
        """Builds the automaton that finds the phrases in hypotheses; None if there is no file.

        Phrases that the vocabulary cannot write are left out, and a warning names them.

        Args:
            vocabulary: The model's vocabulary.
            vocab_size: Number of tokens of the decoder, at least that of the vocabulary.

        Raises:
            UserError: If the phrases cannot be read, or the vocabulary can write none of them.
        """
        self.check()
        phrases = self.phrase_list()
        if not phrases or not self.phrases_weight:
            return None
        bonuses: dict[str, float] = {}
        missing = []
        for phrase, weight in phrases.items():
            forms = written_forms(phrase, vocabulary)
            missing += [] if forms else [phrase]
            for form in forms:
                bonus = weight * len(vocabulary.encode(form))
                bonuses[form] = max(bonus, bonuses.get(form, 0.0))
        if not bonuses:
            raise UserError(
                f"the model's vocabulary can write none of the phrases of {self.phrases}, such as "
                f"{missing[0]!r}"
            )
        if missing:
            log.warning(
                "the model's vocabulary cannot write %d of %d phrases of %s, which are left out: "
                "%s",
                len(missing),
                len(phrases),
                self.phrases,
                ", ".join(missing),
            )
        written = vocabulary.token_bytes()
        padded = [*written, *[None] * (vocab_size - len(written))]
        bias = PhraseBias.build(bonuses, padded, blank_id=PAD_ID)
        log.info("%d phrases take %.1f MiB", len(phrases) - len(missing), bias.nbytes / 2**20)
        return bias

    def fusion(
        self,
        lm: LabelLm | WordLm | None,
        decoder: str = "transducer",
        phrases: PhraseBias | None = None,
    ) -> Fusion | None:
        """Returns the terms that the search adds to scores; None if there are none.

        Args:
            lm: The language model. One over words does not take part in the search.
            decoder: The decoder; only a transducer has an internal language model.
            phrases: The phrases, from `phrase_bias`.

        Raises:
            UserError: If the decoder has no internal language model to subtract, or no blank.
        """
        if self.blank_penalty and decoder == "attention":
            raise UserError(
                "--blank_penalty needs a decoder with a blank, and an attention decoder has none: "
                "leave it out; --length_alpha and --length_bonus change the length of its texts"
            )
        if self.ilm_weight and decoder != "transducer":
            raise UserError(
                f"--ilm_weight subtracts the internal language model of a transducer, and the "
                f"{decoder} decoder has none: leave it out, or choose --decoder transducer"
            )
        in_search = None if isinstance(lm, WordLm) else lm
        if not (in_search or phrases or self.length_bonus or self.ilm_weight):
            return None
        return Fusion(
            lm=in_search,
            weight=self.lm_weight,
            length_bonus=self.length_bonus,
            internal_weight=self.ilm_weight,
            internal_encoder=self.ilm_encoder,
            phrases=phrases,
            phrases_weight=self.phrases_weight,
        )


def choose_decoder(run: TrainRun, name: str | None) -> str:
    """Chooses the decoder to search with.

    Args:
        run: The run that trained the model.
        name: `transducer`, `ctc` or `attention`; None for the decoder that the run trained, the
            transducer if that is one of several.

    Returns:
        The name of the decoder.

    Raises:
        UserError: If the name is unknown, the model has no such decoder, or the run trained none
            and none is named.
    """
    trained = run.objective.decoders
    if name is None and not trained:
        raise UserError(
            f"{type(run.objective).__name__} trained no decoder; fine-tune the model first "
            "(runs/finetune.gin with INIT_FROM), or name a --decoder."
        )
    if name is None:
        return trained[0]
    if name not in DECODERS:
        raise UserError(
            f"unknown decoder {name!r}; choose one of {', '.join(DECODERS)}."
            f"{near_misses(name, DECODERS)}"
        )
    available = tuple(run.model.vocab_sizes)
    if name not in available:
        raise UserError(
            f"the model has no {name} decoder; it has {' and '.join(available)}: leave --decoder "
            "out, or fine-tune a model that has one."
        )
    if name not in trained:
        log.warning(
            "the run trained %s and not the %s decoder", " and ".join(trained) or "none", name
        )
    return name
