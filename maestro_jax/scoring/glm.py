"""Word error rate of telephone conversations, by the rules of NIST's evaluations.

Published error rates of Switchboard and CallHome are by the rules of sclite and of a global mapping
file (GLM): hesitations may be left out, and "I'm" and "I am" are one thing.

A GLM has a rule a line, of what is written and what stands for it, with alternatives in braces:

    ;; a comment
    OKAY     =>  OK                          / [ ] __ [ ]
    I'M      =>  { I'M / I AM }              / [ ] __ [ ]
    UH       =>  (%HESITATION)               / [ ] __ [ ]
    THE      =>  { THE / A }                 / [ SEE ] __ [ DOG ]

What stands in brackets are the words before and after, if it matters which they are. A word in
round brackets may be left out, and `@` is nothing at all.

Source: the documentation of NIST's Scoring Toolkit (sclite, csrfilt.sh).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from maestro_jax.errors import UserError
from maestro_jax.scoring.metrics import WordErrorRate
from maestro_jax.text.normalizers import normalize

HESITATION = "%hesitation"

HESITATIONS = (
    *("uh", "um", "uhm", "eh", "er", "erm", "ah", "ach", "mm", "hm", "hmm", "huh", "ha"),
    *("oof", "hee", "eee", "ew"),
)
"""Words that may be left out, unless a GLM says something else of them."""

# Assent and denial, which are no hesitations; normalisation parts them at the hyphen.
_BACKCHANNELS = {
    "uh-huh": ("uh huh", "um hum", "um hm", "mm hm", "mm hmm", "mhm", "mmhm"),
    "uh-uh": ("uh uh", "huh uh"),
}
_SPELLINGS = {"okay": "ok", "alright": "all right", "cannot": "can not", "yep": "yeah"}
_FULL_FORMS = {
    "'m": ("am",),
    "'re": ("are",),
    "'ve": ("have",),
    "'ll": ("will",),
    "'d": ("would", "had"),
    "'s": ("is", "has"),
}
_CONTRACTED = {
    "'m": ("i",),
    "'re": ("you", "we", "they", "who", "what", "there"),
    "'ve": ("i", "you", "we", "they", "would", "could", "should", "might", "who"),
    "'ll": ("i", "you", "he", "she", "it", "we", "they", "that", "there", "who", "what"),
    "'d": ("i", "you", "he", "she", "it", "we", "they", "that", "there", "who"),
    "'s": ("he", "she", "it", "that", "there", "here", "what", "who", "where", "how", "when"),
}
_NEGATED = (
    *("is", "are", "was", "were", "do", "does", "did", "have", "has", "had", "could", "would"),
    *("should", "must", "need"),
)
_OTHERS = {
    "can't": ("can not",),
    "won't": ("will not",),
    "ain't": ("am not", "is not", "are not"),
    "let's": ("let us",),
    "gonna": ("going to",),
    "wanna": ("want to",),
    "gotta": ("got to",),
    "kinda": ("kind of",),
    "sorta": ("sort of",),
    "cause": ("because",),  # Normalisation removes apostrophes in front of words.
    "em": ("them",),
}

Words = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule of a global mapping file.

    Attributes:
        words: What is written.
        alternatives: What may stand for it, any of them; words in round brackets may be left out.
        before: Words that must come before; any if it is empty.
        after: Words that must come after; any if it is empty.
    """

    words: Words
    alternatives: tuple[Words, ...]
    before: Words = ()
    after: Words = ()

    def matches(self, text: Sequence[str], place: int) -> bool:
        """Returns whether the rule applies to the words of a text from a place on."""
        end = place + len(self.words)
        return (
            tuple(text[place:end]) == self.words
            and tuple(text[max(0, place - len(self.before)) : place]) == self.before
            and tuple(text[end : end + len(self.after)]) == self.after
        )


class Glm:
    """Rules that are applied to reference and hypothesis before they are compared.

    At each word of a text, the first matching rule is applied, of those with the most words; what
    it writes is not read again.

    Args:
        rules: The rules; of two with the same words, the first one counts.
        name: How scores name the rules.
    """

    def __init__(self, rules: Iterable[Rule], name: str) -> None:
        self.name = name
        self._by_first: dict[str, list[Rule]] = {}
        for rule in rules:
            self._by_first.setdefault(rule.words[0], []).append(rule)
        for group in self._by_first.values():
            group.sort(key=lambda rule: -len(rule.words))

    def network(self, text: str) -> Network:
        """Applies the rules to a normalised text.

        Args:
            text: Words with spaces between them.

        Returns:
            All texts that stand for it.
        """
        words = text.split()
        network = Network()
        place = 0
        while place < len(words):
            candidates = self._by_first.get(words[place], ())
            rule = next((rule for rule in candidates if rule.matches(words, place)), None)
            network.append(((words[place],),) if rule is None else rule.alternatives)
            place += 1 if rule is None else len(rule.words)
        return network


@dataclasses.dataclass(frozen=True)
class _Arc:
    """A word from one place of a network to the next; None is no word at all."""

    source: int
    word: str | None
    optional: bool = False


class Network:
    """The texts that a text may stand for: an acyclic graph of words, in topological order."""

    def __init__(self) -> None:
        self.arcs: list[list[_Arc]] = [[]]  # Those that end at each place.

    def append(self, alternatives: Sequence[Words]) -> None:
        """Appends words, or any of several alternatives."""
        begin = len(self.arcs) - 1
        last: list[_Arc] = []
        for alternative in alternatives:
            source = begin
            for word in alternative[:-1]:
                self.arcs.append([_arc(source, word)])
                source = len(self.arcs) - 1
            last.append(_arc(source, alternative[-1]) if alternative else _Arc(source, None))
        self.arcs.append(last)


def _arc(source: int, word: str) -> _Arc:
    if word.startswith("(") and word.endswith(")"):
        return _Arc(source, word[1:-1], optional=True)
    return _Arc(source, word)


# sclite's costs: an insertion and a deletion are dearer than a substitution.
_SUBSTITUTION, _GAP, _OPTIONAL_GAP = 4, 3, 2
# Cost, errors, minus the words of the reference, substitutions, deletions. Of equally good paths,
# sclite takes the one with the fewest errors and, of those, the most words.
_Path = tuple[int, int, int, int, int]


def align(reference: Network, hypothesis: Network) -> tuple[int, int, int, int]:
    """Aligns two networks with the fewest weighted errors, as `sclite -D` does.

    Args:
        reference: What was said. Optional words that are left out count as correct.
        hypothesis: What was recognised. Optional words that the reference lacks do not count.

    Returns:
        Substitutions, deletions, insertions, and the number of words of the reference.
    """
    paths: list[list[_Path]] = []
    for row, reference_arcs in enumerate(reference.arcs):
        paths.append([])
        for column, hypothesis_arcs in enumerate(hypothesis.arcs):
            found: list[_Path] = [(0, 0, 0, 0, 0)] if not (row or column) else []
            for arc in reference_arcs:
                cost, e, n, s, d = paths[arc.source][column]
                if arc.word is None:
                    found.append((cost, e, n, s, d))
                elif arc.optional:
                    found.append((cost + _OPTIONAL_GAP, e, n - 1, s, d))
                else:
                    found.append((cost + _GAP, e + 1, n - 1, s, d + 1))
            for other in hypothesis_arcs:
                cost, e, n, s, d = paths[row][other.source]
                if other.word is None:
                    found.append((cost, e, n, s, d))
                elif other.optional:
                    found.append((cost + _OPTIONAL_GAP, e, n, s, d))
                else:
                    found.append((cost + _GAP, e + 1, n, s, d))
                for arc in reference_arcs:
                    if arc.word is None or other.word is None:
                        continue
                    cost, e, n, s, d = paths[arc.source][other.source]
                    if arc.word == other.word:
                        found.append((cost, e, n - 1, s, d))
                    else:
                        found.append((cost + _SUBSTITUTION, e + 1, n - 1, s + 1, d))
            paths[row].append(min(found))
    _, errors, words, substitutions, deletions = paths[-1][-1]
    return substitutions, deletions, errors - substitutions - deletions, -words


class GlmWordErrorRate(WordErrorRate):
    """Word error rate under the rules of a GLM; stands in for `wer` where a suite asks for it.

    Args:
        glm: The rules; `default_glm` by default.
    """

    def __init__(self, glm: Glm | None = None) -> None:
        self._glm = glm or default_glm()

    def statistics(
        self, references: Sequence[str], hypotheses: Sequence[str], language: str
    ) -> np.ndarray:
        """Counts substitutions, deletions, insertions and reference words, [utterances, 4]."""
        return np.asarray(
            [
                align(self._glm.network(reference), self._glm.network(hypothesis))
                for reference, hypothesis in zip(references, hypotheses, strict=True)
            ],
            np.int64,
        )

    def signature(self, language: str) -> str:
        """Names the rules."""
        return f"hesitations may be left out; {self._glm.name}"


def default_glm() -> Glm:
    """Returns rules for English: hesitations, assent, contractions and a few spellings.

    Those of NIST's evaluations have many more, and differ from year to year: `read_glm` reads them.
    """
    rules = []
    for short, full in _OTHERS.items():
        rules.append(_either(short, *full))
    for ending, starts in _CONTRACTED.items():
        rules += [
            _either(f"{word}{ending}", *(f"{word} {full}" for full in _FULL_FORMS[ending]))
            for word in starts
        ]
    rules += [_either(f"{word}n't", f"{word} not") for word in _NEGATED]
    rules += [_either(one, other) for one, other in _SPELLINGS.items()]
    for assent, spellings in _BACKCHANNELS.items():
        rules += [Rule(tuple(spelling.split()), ((assent,),)) for spelling in spellings]
    return Glm([*rules, *_hesitations()], "contractions of maestro_jax")


def _hesitations() -> list[Rule]:
    return [Rule((word,), ((f"({HESITATION})",),)) for word in HESITATIONS]


def _either(*forms: str) -> Rule:
    return Rule(tuple(forms[0].split()), tuple(tuple(form.split()) for form in forms))


_RULE = re.compile(
    r"(?P<words>.+?)\s*=>\s*(?P<result>\{.*?\}|[^/{}]*?)\s*"
    r"(?:/\s*\[(?P<before>[^\]]*)\]\s*__\s*\[(?P<after>[^\]]*)\]\s*)?"
)


def read_glm(path: str | Path) -> Glm:
    """Reads a global mapping file; `HESITATIONS` that it does not mention may be left out too.

    Args:
        path: The file, in any case of letters.

    Raises:
        UserError: The file cannot be read, has no rules, or a line is no rule.
    """
    path = Path(path).expanduser()
    try:
        # NIST's files are in Latin-1 where they have accents at all.
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"--glm {path} cannot be read: {error.strerror or error}.") from error
    rules = []
    for number, line in enumerate(lines, start=1):
        text = line.partition(";;")[0].strip().lower()
        # Lines that begin with an asterisk name the file.
        if not text or text.startswith("*"):
            continue
        match = _RULE.fullmatch(text)
        if match is None or not (words := _words(match["words"])):
            raise UserError(
                f"line {number} of {path} is no rule: {line.strip()!r}; write, for instance, "
                "I'M => { I'M / I AM } / [ ] __ [ ]."
            )
        result = match["result"].strip()
        alternatives = result[1:-1].split("/") if result.startswith("{") else [result]
        rules.append(
            Rule(
                words,
                tuple(_words(alternative) for alternative in alternatives),
                _words(match["before"] or ""),
                _words(match["after"] or ""),
            )
        )
    if not rules:
        raise UserError(f"--glm {path} has no rules; name a global mapping file.")
    return Glm([*rules, *_hesitations()], path.name)


def _words(text: str) -> Words:
    """Returns the words of a side of a rule, normalised as transcripts are.

    Marks of the rules stay: `%` before names of noises, brackets around optional words.
    """
    words: list[str] = []
    for token in text.strip().removeprefix("[").removesuffix("]").split():
        if token == "@":
            continue
        if (bare := token.strip("()")).startswith("%"):
            words.append(f"({bare})" if token.startswith("(") or bare == HESITATION else bare)
            continue
        optional = token.startswith("(") and token.endswith(")")
        normal = normalize(token, "en").split()
        words += [f"({word})" for word in normal] if optional else normal
    return tuple(words)
