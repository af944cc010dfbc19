"""The rules for telephone conversations against hand counts, brute force and sclite itself."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from maestro_jax.errors import UserError
from maestro_jax.scoring.glm import (
    Glm,
    GlmWordErrorRate,
    Network,
    Words,
    align,
    default_glm,
    read_glm,
)
from maestro_jax.scoring.metrics import compute_score, get_metric


def counts(reference: str, hypothesis: str, glm: Glm | None = None) -> tuple[int, ...]:
    """Substitutions, deletions, insertions, words."""
    [row] = GlmWordErrorRate(glm).statistics([reference], [hypothesis], "en")
    return tuple(int(value) for value in row)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("uh yes", "yes", (0, 0, 0, 2)),
        ("yes", "um yes", (0, 0, 0, 1)),
        ("uh yes", "um yes", (0, 0, 0, 2)),
        # A word in the place of a hesitation is an error like any other.
        ("uh yes", "oh yes", (1, 0, 0, 2)),
        ("i'm here", "i am here", (0, 0, 0, 3)),
        ("i am here", "i'm here", (0, 0, 0, 3)),
        ("he's gone", "he has gone", (0, 0, 0, 3)),
        ("he's gone", "he was gone", (1, 0, 0, 3)),
        ("we're gonna go", "we are going to go", (0, 0, 0, 5)),
        # Assent is no hesitation, however it is written.
        ("uh huh", "", (0, 1, 0, 1)),
        ("uh huh", "mhm", (0, 0, 0, 1)),
        ("okay", "ok", (0, 0, 0, 1)),
        ("", "uh", (0, 0, 0, 0)),
        ("", "a", (0, 0, 1, 0)),
        ("a b", "", (0, 2, 0, 2)),
    ],
)
def test_default_rules(reference: str, hypothesis: str, expected: tuple[int, ...]) -> None:
    assert counts(reference, hypothesis) == expected


def test_a_file_of_rules(tmp_path: Path) -> None:
    path = tmp_path / "en.glm"
    path.write_text(
        """;; rules
* name "mine"
OKAY => OK / [ ] __ [ ] ;; one spelling
[YOU_KNOW] => Y'KNOW / [ ] __ [ ]
I'M => { I'M / I AM } / [ ] __ [ ]
THE => { THE / A } / [ SEE ] __ [ DOG ]
WELL => { WELL / @ } / [ ] __ [ ]
TH- => (TH-) / [ ] __ [ ]
BLAH => %HESITATION / [ ] __ [ ]
TWENTY TWO => 22 / [ ] __ [ ]
""",
        encoding="utf-8",
    )
    glm = read_glm(path)
    assert counts("okay i'm here", "ok i am here", glm) == (0, 0, 0, 4)
    # Only between the two words that the rule asks for.
    assert counts("i see the dog", "i see a dog", glm) == (0, 0, 0, 4)
    assert counts("i pat the dog", "i pat a dog", glm) == (1, 0, 0, 4)
    assert counts("well yes", "yes", glm) == (0, 0, 0, 1)
    assert counts("blah yes", "uh yes", glm) == (0, 0, 0, 2)
    assert counts("th the th", "the", glm) == (0, 0, 0, 3)
    assert counts("twenty two", "22", glm) == (0, 0, 0, 1)
    # The default contractions are not those of the file.
    assert counts("we're here", "we are here", glm) == (1, 0, 1, 2)
    assert GlmWordErrorRate(glm).signature("en").endswith("en.glm")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("OKAY OK", r"line 1 of .*en\.glm is no rule: 'OKAY OK'"),
        ("; nothing", "is no rule"),
        (";; nothing\n", "has no rules"),
        ("A => { B / C", "line 1"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "en.glm"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_glm(path)
    with pytest.raises(UserError, match="--glm .*none.glm cannot be read"):
        read_glm(tmp_path / "none.glm")


# Parts of texts as sclite writes them, and as a network has them.
PARTS: dict[str, tuple[Words, ...]] = {
    **{letter: ((letter,),) for letter in "abcde"},
    "(h)": (("(h)",),),
    "{ a b / c }": (("a", "b"), ("c",)),
}


def random_texts(seed: int, count: int, parts: Sequence[str]) -> list[list[str]]:
    rng = random.Random(seed)
    return [rng.choices(parts, k=rng.randint(1, 6)) for _ in range(count)]


def network(parts: Sequence[str]) -> Network:
    made = Network()
    for part in parts:
        made.append(PARTS[part])
    return made


def paths(parts: Sequence[str]) -> Iterator[list[str]]:
    """Every text that a network stands for; optional words keep their brackets."""
    for chosen in itertools.product(*(PARTS[part] for part in parts)):
        yield [word for words in chosen for word in words]


def cheapest(reference: list[str], hypothesis: list[str]) -> int:
    """The definition of the cost, without a table: all alignments of two short texts."""

    def gap(word: str) -> int:
        return 2 if word.startswith("(") else 3

    def cost(i: int, j: int) -> int:
        if i == len(reference) and j == len(hypothesis):
            return 0
        found = []
        if i < len(reference):
            found.append(gap(reference[i]) + cost(i + 1, j))
        if j < len(hypothesis):
            found.append(gap(hypothesis[j]) + cost(i, j + 1))
        if i < len(reference) and j < len(hypothesis):
            same = reference[i].strip("()") == hypothesis[j].strip("()")
            found.append((0 if same else 4) + cost(i + 1, j + 1))
        return min(found)

    return cost(0, 0)


def test_alignments_are_the_cheapest_of_all() -> None:
    parts = ["a", "b", "c", "{ a b / c }"]
    for left, right in zip(random_texts(1, 40, parts), random_texts(2, 40, parts), strict=True):
        left, right = left[:3], right[:3]
        best = min(cheapest(a, b) for a in paths(left) for b in paths(right))
        substitutions, deletions, insertions, _ = align(network(left), network(right))
        assert 4 * substitutions + 3 * (deletions + insertions) == best


def test_without_rules_it_is_the_word_error_rate() -> None:
    """Texts without hesitations and contractions, so few errors that the costs do not matter."""
    references = ["the quick brown fox", "one two three", "a b c d", "x"]
    hypotheses = ["the quick red fox", "one three", "a b c d e", "x"]
    plain, ruled = (
        compute_score(metric, references, hypotheses, bootstrap_samples=0)
        for metric in (get_metric("wer"), GlmWordErrorRate())
    )
    assert plain.value == ruled.value and plain.counts == ruled.counts


@pytest.mark.skipif(not (shutil.which("sclite") or shutil.which("sctk")), reason="needs sclite")
def test_counts_are_those_of_sclite(tmp_path: Path) -> None:
    """Of random texts: of a few, sclite finds another alignment that costs as much."""
    everything = list(PARTS)
    references = random_texts(3, 400, everything)
    hypotheses = random_texts(4, 400, [part for part in everything if part != "(h)"])
    for name, texts in (("ref", references), ("hyp", hypotheses)):
        lines = [f"{' '.join(parts)} (s_{number:03d})\n" for number, parts in enumerate(texts)]
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    program = ["sclite"] if shutil.which("sclite") else ["sctk", "sclite"]
    output = subprocess.run(
        [*program, "-r", "ref", "trn", "-h", "hyp", "trn", "-D", "-i", "rm", "-o", "pralign"]
        + ["stdout"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    theirs = re.findall(r"Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", output)
    assert len(theirs) == 400
    equal = 0
    for reference, hypothesis, line in zip(references, hypotheses, theirs, strict=True):
        c, s, d, i = map(int, line)
        ours = align(network(reference), network(hypothesis))
        equal += ours == (s, d, i, c + s + d)
    assert equal >= 390


def test_default_rules_are_of_normalised_texts() -> None:
    from maestro_jax.text.normalizers import normalize

    glm = default_glm()
    for text in ("I'm", "don't", "'cause", "gonna", "Uh-huh"):
        words = normalize(text, "en")
        changed = glm.network(words)
        assert [arc.word for arcs in changed.arcs for arc in arcs] != words.split(), text
