r"""Reads and writes n-gram models in the ARPA format, plain or compressed by gzip.

    \data\
    ngram 1=3
    ngram 2=2

    \1-grams:
    -0.5 <s> -0.3         log10 P, the tokens, log10 of the back-off weight (0 if absent)
    ...
    \end\

KenLM, SRILM and other writers differ in tabs and spaces, in how they write a probability of zero,
and in whether they list n-grams that are only contexts.
"""

from __future__ import annotations

import array
import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from etils import epath

from maestro_jax.decoding.backoff import BackoffModel, Ngrams, build
from maestro_jax.errors import UserError
from maestro_jax.files import as_path, local_copy, written_locally

BEGIN, END = "<s>", "</s>"
UNKNOWN = ("<unk>", "<UNK>")

_ZERO = -99.0
"""The logarithm of zero, as writers have it."""
_LN10 = math.log(10.0)
_COUNT = re.compile(rb"ngram\s+(\d+)\s*=\s*(\d+)")
_SECTION = re.compile(rb"\\(\d+)-grams:")
_HEADER_LINES = 100
"""Number of lines within which `\\data\\` must come: the format allows any text before it."""
_KENLM = b"mmap lm http://kheafield.com/code"


def open_text(path: epath.PathLike) -> IO[bytes]:
    """Opens a file for reading, decompressed if its first bytes are those of gzip.

    Raises:
        OSError: If it cannot be opened.
        UserError: If it is in a bucket and cannot be copied from there.
    """
    path = local_copy(path)
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")  # type: ignore[return-value]


def is_arpa(path: epath.PathLike) -> bool:
    """Tells whether a file is a language model in the ARPA format, as opposed to a text.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        with open_text(path) as file:
            return any(
                file.readline(1 << 16).strip() == rb"\data" + b"\\" for _ in range(_HEADER_LINES)
            )
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


class ArpaFile:
    """The n-grams of a file.

    Attributes:
        path: The file.
        words: The distinct words of its unigrams, in order; their indices are the ids of words.
        sections: For each length: ids of words, int32 `[n-grams, length]`, and log10 of
            probabilities and of back-off weights, float32 `[n-grams]` each.
    """

    def __init__(self, path: epath.PathLike) -> None:
        """Reads a file.

        Raises:
            UserError: If it cannot be read, or is not a complete ARPA file.
        """
        self.path = str(path)
        self.words: list[str] = []
        self.sections: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        try:
            with open_text(path) as file:
                self._read(file)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"cannot read the language model {path}: {error}") from error

    def _read(self, file: IO[bytes]) -> None:
        declared = self._header(file)
        lines = (line for line in file if not line.isspace())
        ids: dict[bytes, int] = {}
        header = next(lines, b"").strip()
        for length, count in enumerate(declared, start=1):
            match = _SECTION.fullmatch(header)
            if not match or int(match[1]) != length:
                raise self._error(f"has {_shown(header)} where \\{length}-grams: is expected")
            header = self._section(lines, length, count, ids)
        if header != rb"\end" + b"\\":
            raise self._error(f"has {_shown(header)} where \\end\\ is expected; is it complete?")

    def _header(self, file: IO[bytes]) -> list[int]:
        """Reads the declared number of n-grams of each length."""
        start = file.readline(1 << 16)
        if start.startswith(_KENLM):
            raise self._error("is a binary file of KenLM; give the ARPA file that it was made from")
        if start.strip() == b"iARPA":
            raise self._error("is IRSTLM's iARPA; convert it to ARPA: compile-lm --text=yes")
        for _ in range(_HEADER_LINES):
            if start.strip() == rb"\data" + b"\\":
                break
            start = file.readline(1 << 16)
        else:
            raise self._error(
                "has no line \\data\\, so it is not a language model in the ARPA format; "
                "give a text with --lm_text"
            )
        counts: list[int] = []
        for line in file:
            if line.isspace():
                if counts:
                    break
                continue
            match = _COUNT.fullmatch(line.strip())
            if not match or int(match[1]) != len(counts) + 1:
                raise self._error(
                    f"has {_shown(line)} where `ngram {len(counts) + 1}=` is expected"
                )
            counts.append(int(match[2]))
        if not counts or not counts[0]:
            raise self._error("declares no n-grams")
        return counts

    def _section(
        self, lines: Iterator[bytes], length: int, count: int, ids: dict[bytes, int]
    ) -> bytes:
        """Reads the n-grams of one length; returns the header of the next section."""
        words, log_probs, backoffs = array.array("i"), array.array("f"), array.array("f")
        narrow, wide = length + 1, length + 2
        header = b""
        for line in lines:
            fields = line.split()
            if len(fields) == wide:
                backoff = fields.pop()
            elif len(fields) == narrow:
                backoff = b"0"
            elif line.startswith(b"\\"):
                header = line.strip()
                break
            else:
                raise self._error(f"has {_shown(line)} among the {length}-grams")
            try:
                log_probs.append(float(fields[0]))
                backoffs.append(float(backoff))
                if length == 1:
                    ids.setdefault(fields[1], len(ids))
                words.extend([ids[word] for word in fields[1:]])
            except ValueError as error:
                raise self._error(f"has {_shown(line)} among the {length}-grams") from error
            except KeyError as error:
                raise self._error(
                    f"has {_shown(line)}, with a word that is not among its 1-grams"
                ) from error
        if len(log_probs) != count:
            raise self._error(
                f"declares {count} {length}-grams and has {len(log_probs)}; is it complete?"
            )
        if length == 1:
            try:
                self.words = [word.decode("utf-8") for word in ids]
            except UnicodeDecodeError as error:
                raise self._error(f"is not in UTF-8: {error}") from error
            if len(ids) != count:
                raise self._error("lists a 1-gram twice")
        self.sections.append(
            (
                np.frombuffer(words, np.int32).reshape(-1, length),
                self._logarithms(log_probs, length, "probability"),
                self._logarithms(backoffs, length, "back-off weight"),
            )
        )
        return header

    def _logarithms(self, values: array.array[float], length: int, what: str) -> np.ndarray:
        # Some writers have -inf for a probability of zero: as -99 it stays finite when weights are
        # added.
        numbers = np.maximum(np.frombuffer(values, np.float32), np.float32(_ZERO))
        if np.isnan(numbers).any() or (what == "probability" and numbers.max(initial=-1.0) > 1e-3):
            raise self._error(f"has an invalid {what} among the {length}-grams")
        return numbers

    def _error(self, what: str) -> UserError:
        return UserError(f"{self.path} {what}")

    def model(
        self, identities: Mapping[str, int], *, size: int, unknown: int, boundary: int
    ) -> BackoffModel:
        """Converts the n-grams to a model over the token ids of a vocabulary.

        Args:
            identities: Token id of each word of the file, except for the special words.
            size: Number of token ids. Ids of no word are as likely as the unknown word, or, if the
                file has none, as its least likely word.
            unknown: Id of the unknown word.
            boundary: Id of the beginning and the end of text.

        Raises:
            UserError: If a word of the file has no id.
        """
        names = dict(identities) | {BEGIN: boundary, END: boundary}
        names |= dict.fromkeys(UNKNOWN, unknown)
        nameless = [word for word in self.words if word not in names]
        if nameless:
            raise self._error(f"has words without an id, such as {nameless[0]!r}")
        table = np.array([names[word] for word in self.words], np.int32)
        begin, end = (np.array([word == mark for word in self.words]) for mark in (BEGIN, END))
        words, log_probs, backoffs = self.sections[0]
        words = words[:, 0]
        # The beginning of text is never predicted, its end is never a context.
        predicted = ~begin[words]
        is_unknown = table[words] == unknown
        lowest = log_probs[is_unknown if is_unknown.any() else predicted].min(initial=0.0)
        all_log_probs = np.full(size, lowest, np.float32)
        all_log_probs[table[words[predicted]]] = log_probs[predicted]
        all_backoffs = np.zeros(size, np.float32)
        contexts = ~end[words]
        all_backoffs[table[words[contexts]]] = backoffs[contexts]
        unigrams = Ngrams(
            np.arange(size, dtype=np.int32)[:, None], _nats(all_log_probs), _nats(all_backoffs)
        )
        longer = []
        for words, log_probs, backoffs in self.sections[1:]:
            # Searches never reach a beginning that is not first, or an end that is not last.
            used = ~begin[words[:, 1:]].any(axis=1) & ~end[words[:, :-1]].any(axis=1)
            longer.append(Ngrams(table[words[used]], _nats(log_probs[used]), _nats(backoffs[used])))
        return build(unigrams, longer, boundary=boundary, origin=self.path)


def _nats(log10: np.ndarray) -> np.ndarray:
    return (log10.astype(np.float64) * _LN10).astype(np.float32)


def _shown(line: bytes) -> str:
    text = line.strip().decode("utf-8", errors="replace")
    return repr(text if len(text) <= 60 else f"{text[:60]}...") if text else "nothing"


def _opened(path: Path, packed: bool) -> IO[str]:
    opener: Callable[..., IO[str]] = gzip.open if packed else open  # type: ignore[assignment]
    return opener(path, "wt", encoding="utf-8", newline="\n")


def write_arpa(model: BackoffModel, path: epath.PathLike, names: Sequence[str | None]) -> None:
    """Writes a model, compressed if the file name ends in `.gz`.

    Args:
        model: The model.
        path: The file to write.
        names: Word of each token. Tokens with None, or beyond the end, are left out.
    """
    path = as_path(path)
    names = [*names, *[None] * (model.vocab_size - len(names))]
    boundary = model.boundary
    unigrams = [i for i, name in enumerate(names) if name is not None and i != boundary]
    with written_locally(path) as part, _opened(part, path.suffix == ".gz") as file:
        counts = [len(unigrams) + 2, *model.counts[1:]]
        file.write("\\data\\\n")
        file.writelines(f"ngram {length}={n}\n" for length, n in enumerate(counts, start=1))
        contexts = {END: boundary} | {names[i]: i for i in unigrams}
        log_probs, backoffs = (
            x.astype(np.float64) / _LN10
            for x in (model.levels[0].log_probs, model.levels[0].backoffs)
        )
        file.write("\n\\1-grams:\n")
        file.write(f"{_ZERO:.0f}\t{BEGIN}\t{backoffs[boundary]:.7g}\n")
        for name, token in contexts.items():
            weight = 0.0 if token == boundary else backoffs[token]
            file.write(f"{log_probs[token]:.7g}\t{name}\t{weight:.7g}\n")
        words = np.array([name or "" for name in names], object)
        words[boundary] = BEGIN
        prefixes = words
        for length, level in enumerate(model.levels[1:], start=2):
            file.write(f"\n\\{length}-grams:\n")
            last = words[level.tokens]
            last[level.tokens == boundary] = END
            rows = prefixes[level.prefixes] + " " + last
            log_probs = level.log_probs.astype(np.float64) / _LN10
            if length == model.order:
                file.writelines(
                    f"{p:.7g}\t{row}\n" for p, row in zip(log_probs.tolist(), rows, strict=True)
                )
            else:
                backoffs = level.backoffs.astype(np.float64) / _LN10
                file.writelines(
                    f"{p:.7g}\t{row}\t{b:.7g}\n"
                    for p, row, b in zip(log_probs.tolist(), rows, backoffs.tolist(), strict=True)
                )
            prefixes = rows
        file.write("\n\\end\\\n")
