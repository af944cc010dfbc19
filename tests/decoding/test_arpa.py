"""ARPA files as different programs write them, against a recursion over their lines."""

from __future__ import annotations

import gzip
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.decoding import kneser_ney
from maestro_jax.decoding.arpa import ArpaFile, is_arpa, write_arpa
from maestro_jax.decoding.ngram import NgramLm
from maestro_jax.errors import UserError

# As KenLM writes: tabs, no weights in the last section, <unk> and <s> among the unigrams.
KENLM = """\\data\\
ngram 1=6
ngram 2=5
ngram 3=3

\\1-grams:
-1.2\t<unk>\t0
0\t<s>\t-0.4
-0.9\t</s>\t0
-0.6\ta\t-0.3
-0.7\tb\t-0.25
-0.8\tc\t0.1

\\2-grams:
-0.2\t<s> a\t-0.15
-0.35\ta b\t-0.2
-0.5\tb </s>\t0
-0.45\tb a\t-0.1
-1.1\tc c\t-0.05

\\3-grams:
-0.1\t<s> a b
-0.15\ta b </s>
-0.3\tb a b

\\end\\
"""
# As SRILM writes: blank lines and comments first, blanks between fields, -99 for the beginning, no
# weight where nothing follows. And pruned: "b a" is a context and a suffix, and is not listed.
SRILM = """
made of a text

\\data\\
ngram 1=5
ngram 2=3
ngram 3=2

\\1-grams:
-0.9 </s>
-99 <s> -0.4
-0.6 a -0.3
-0.7 b -0.25
-0.8 c

\\2-grams:
-0.2 <s> a -0.15
-0.35 a b -0.2
-0.5 b </s>

\\3-grams:
-0.3 b a b
-0.25 c b a

\\end\\
"""
IDS = {"a": 3, "b": 4, "c": 5}
SIZE, UNKNOWN, BOUNDARY = 8, 2, 0
NAMES = ["</s>", "strange", "<unk>", "a", "b", "c", "beyond", "beyond"]


def slow(text, history, word):
    """log10 P of a word after a history (Katz's recursion over the lines, in float64)."""
    log_probs, weights, length = {}, {}, 0
    for line in text.split("\\data\\")[1].splitlines():
        fields = line.split()
        if line.endswith("-grams:"):
            length = int(line[1])
        elif length and len(fields) > length:
            ngram = tuple(fields[1 : length + 1])
            log_probs[ngram] = float(fields[0])
            weights[ngram] = float(fields[-1]) if len(fields) == length + 2 else 0.0
    words = {ngram[0] for ngram in log_probs if len(ngram) == 1}
    lowest = min(p for n, p in log_probs.items() if len(n) == 1 and n != ("<s>",))
    log_probs.setdefault(("<unk>",), lowest)
    history = tuple(w if w in words else "<unk>" for w in history)[-2:]
    word = word if word in words else "<unk>"

    def recursion(history):
        if (*history, word) in log_probs:
            return log_probs[(*history, word)]
        return weights.get(history, 0.0) + recursion(history[1:])

    return recursion(history)


def model_of(text, path):
    path.write_text(text, encoding="utf-8")
    return ArpaFile(path).model(IDS, size=SIZE, unknown=UNKNOWN, boundary=BOUNDARY)


@pytest.mark.parametrize("text", [KENLM, SRILM, KENLM.replace("\n", "\r\n")])
@pytest.mark.parametrize("dense", [1, 1 << 20])
def test_against_the_recursion(text, dense, tmp_path):
    model = model_of(text, tmp_path / "lm.arpa")
    lm = NgramLm.from_model(model, dense=dense)
    texts = list(itertools.product((3, 4, 5, 2), repeat=4))
    state = lm.initial_state(len(texts))
    for at in range(5):
        labels = [row[at - 1] if at else 0 for row in texts]
        scores, state = lm.score(state, jnp.asarray(labels))
        for row in range(0, len(texts), 7):
            history = ("<s>", *(NAMES[token] for token in texts[row][:at]))
            want = [slow(text, history, name) * np.log(10) for name in NAMES]
            np.testing.assert_allclose(scores[row], want, rtol=2e-6)
            inner = (0, *texts[row][:at])
            found = [model.log_prob(inner, token) for token in range(SIZE)]
            np.testing.assert_allclose(found, want, rtol=2e-6)


def test_text_log_prob_reads_from_the_beginning_to_the_end(tmp_path):
    model = model_of(KENLM, tmp_path / "lm.arpa")
    # <s> a, <s> a b, a b </s> are all listed.
    want = (-0.2 - 0.1 - 0.15) * np.log(10)
    np.testing.assert_allclose(model.text_log_prob([3, 4]), want, rtol=1e-6)


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_what_is_written_is_read(name, tmp_path):
    rng = np.random.default_rng(0)
    texts = [rng.integers(2, SIZE, size=6).tolist() for _ in range(30)]
    model = kneser_ney.estimate(texts, vocab_size=SIZE, order=3, prune=(0, 0, 1))
    path = tmp_path / name
    names = [None, None, "<unk>", "\u2581a", "b", "\u3000", "\u00e9", "<0x0A>"]
    write_arpa(model, path, names)
    assert is_arpa(path)
    assert path.read_bytes().startswith(b"\x1f\x8b" if name.endswith(".gz") else b"\\data\\")
    ids = {word: i for i, word in enumerate(names) if i > 2}
    again = ArpaFile(path).model(ids, size=SIZE, unknown=2, boundary=0)
    assert again.counts == model.counts
    for old, new in zip(model.levels, again.levels, strict=True):
        np.testing.assert_array_equal(old.tokens, new.tokens)
        kept = slice(2, None) if len(old) == SIZE else slice(None)
        np.testing.assert_allclose(old.log_probs[kept], new.log_probs[kept], rtol=1e-6)
        np.testing.assert_allclose(old.backoffs, new.backoffs, rtol=1e-6, atol=1e-7)


def test_a_compressed_file_is_read(tmp_path):
    (tmp_path / "lm.gz").write_bytes(gzip.compress(KENLM.encode()))
    assert ArpaFile(tmp_path / "lm.gz").words == ["<unk>", "<s>", "</s>", "a", "b", "c"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (KENLM, "one two three\n", "no line .data.*--lm_text"),
        (KENLM, "", "no line .data"),
        ("\n\\end\\\n", "", "nothing where .end. is expected"),
        ("-0.3\tb a b\n", "", "declares 3 3-grams and has 2; is it complete"),
        ("\\3-grams:\n-0.1\t<s> a b\n-0.15\ta b </s>\n-0.3\tb a b\n\n\\end\\\n", "", "is expected"),
        (
            "-0.3\tb a b",
            "-0.3\tb a d",
            "'-0.3\\\\tb a d', with a word that is not among its 1-grams",
        ),
        ("-0.3\tb a b", "-0.3\tb a b b b", "among the 3-grams"),
        ("-0.3\tb a b", "x\tb a b", "'x\\\\tb a b' among the 3-grams"),
        ("-0.3\tb a b", "nan\tb a b", "probability among the 3-grams"),
        ("-0.3\tb a b", "0.5\tb a b", "probability among the 3-grams"),
        ("-0.3\tb a b", "-0.3\ta b </s>", "twice"),
        ("\tc\t", "\tb\t", "1-gram twice"),
        ("ngram 1=6", "ngrams: 6", "is expected"),
        ("\\data\\", "mmap lm http://kheafield.com/code format version 5", "binary file of KenLM"),
        ("\\data\\", "iARPA", "IRSTLM"),
    ],
)
def test_a_file_that_is_not_whole_is_one_clear_line(old, new, message, tmp_path):
    assert old in KENLM
    with pytest.raises(UserError, match=message) as error:
        model_of(KENLM.replace(old, new, 1), tmp_path / "lm.arpa")
    assert "\n" not in str(error.value) and "lm.arpa" in str(error.value)


def test_cut_compressed_and_missing_files_are_one_clear_line(tmp_path):
    (tmp_path / "cut.gz").write_bytes(gzip.compress(KENLM.encode())[:-30])
    for name in ("cut.gz", "nowhere.arpa"):
        with pytest.raises(UserError, match=f"cannot read the language model .*{name}") as error:
            ArpaFile(tmp_path / name)
        assert "\n" not in str(error.value)
