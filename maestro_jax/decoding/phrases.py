"""Contextual biasing: raises the scores of hypotheses that contain phrases of a list.

Names and terms that a model has seldom seen are heard as words that sound alike. A list of phrases
is a context that shallow fusion can add (Aleksic et al. 2015, "Bringing contextual information to
Google speech recognition"; Zhao et al. 2019, "Shallow-fusion end-to-end contextual biasing"): every
step along a phrase is rewarded, so that the beam keeps it, and the reward is taken back when the
phrase is not completed. Of a finished hypothesis exactly this remains:

    bonus = sum over all occurrences of phrases of (weight of the phrase * its number of tokens)

An occurrence begins and ends at the edge of a word, except where the phrase begins or ends in a
script that is written without spaces. Occurrences that overlap all count.

The phrases are a trie of bytes, and an Aho-Corasick automaton on it finds all occurrences in one
pass. A token of the vocabulary is a step over all of its bytes, so that every way to cut a phrase
into tokens is found, and all ways have the same bonus. The automaton over tokens is sparse, like
the n-grams of `decoding.ngram`: a state lists the tokens that continue a phrase, and all others
lead where they lead from the beginning of a word.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import regex

from maestro_jax.errors import UserError
from maestro_jax.text.characters import spelled
from maestro_jax.text.vocabularies import UNK_ID, Vocabulary

_CHUNK = 64
"""Number of listed tokens of a state that are written at a time."""
_EDGE = " "
"""What stands in the automaton for any character that separates words."""
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        *("first", "tokens", "reached", "earned", "held", "at_edge"),
        *("default_reached", "default_earned", "is_edge"),
    ),
    meta_fields=("start", "blank_id", "widest", "largest_gain"),
)
@dataclasses.dataclass(frozen=True)
class PhraseBias:
    """A list of phrases: a `fusion.LabelLm` whose scores are bonuses, and a pytree.

    Its scores are no log-probabilities: they are positive along a phrase, negative where one
    breaks off, and 0 elsewhere. The bonus of a token after a state is what the token earns by
    completing phrases, plus what the new state holds, minus what the old one held.

    Attributes:
        first: The first of the listed tokens of each state, int32 `[states + 1]`.
        tokens: The listed tokens, int32, ascending within a state.
        reached: The state that each of them leads to, int32.
        earned: The bonus that each of them earns, with what the new state holds, float32.
        held: The bonus of the unfinished phrase, float32 `[states]`.
        at_edge: What an edge of a word earns after each state, float32 `[states]`.
        default_reached: The state that each token leads to where it is not listed, int32 `[vocab]`.
        default_earned: What it earns there, with what that state holds, float32 `[vocab]`.
        is_edge: Whether each token begins with an edge of a word, bool `[vocab]`.
        start: The state at the beginning of a text.
        blank_id: The token that begins and ends a text.
        widest: Largest number of tokens that a state lists.
        largest_gain: The largest bonus of one token.
    """

    first: jax.Array
    tokens: jax.Array
    reached: jax.Array
    earned: jax.Array
    held: jax.Array
    at_edge: jax.Array
    default_reached: jax.Array
    default_earned: jax.Array
    is_edge: jax.Array
    start: int
    blank_id: int
    widest: int
    largest_gain: float

    @classmethod
    def build(
        cls,
        phrases: Mapping[str, float],
        token_bytes: Sequence[bytes | None],
        *,
        blank_id: int = 0,
    ) -> PhraseBias:
        """Builds the automaton.

        Args:
            phrases: Bonus of each phrase, as the vocabulary spells it: words between single spaces.
            token_bytes: What each token writes, in UTF-8 with a space before each word; None for a
                token that writes nothing that could belong to a phrase.
            blank_id: Token id of the blank.
        """
        marks = {c for phrase in phrases for c in phrase if _separates(c)} - {_EDGE}
        steps = [None if content is None else _steps(content, marks) for content in token_bytes]
        # What separates the words of some phrase stays itself, and is an edge as well.
        edges = [mark.encode() for mark in sorted({_EDGE, *marks})]
        automaton = _Automaton()
        for phrase, bonus in phrases.items():
            for opens in [b""] if _UNSPACED.match(phrase[0]) else edges:
                for closes in [b""] if _UNSPACED.match(phrase[-1]) else edges:
                    automaton.add(opens, phrase.encode(), closes, bonus)
        automaton.finish()
        return _over_tokens(automaton, steps, blank_id)

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def initial_state(self, rows: int) -> jax.Array:
        """Returns the states before the first call, int32 `[rows]`."""
        return jnp.full(rows, self.start, jnp.int32)

    def score(self, state: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Reads labels `[rows]`; returns bonuses of the next ones, `[rows, vocab]`, and states.

        The entry of the blank is what the end of the text earns: it completes the last word, and
        takes an unfinished phrase back.
        """
        state = self._read(state, labels.astype(jnp.int32))
        held = self.held[state][:, None]
        # An edge completes the phrases that a state has gone through but for their end.
        at_edge = self.at_edge[state][:, None]
        scores = self.default_earned + jnp.where(self.is_edge, at_edge, 0.0)
        scores = self._overwrite(scores, state) - held
        is_blank = jnp.arange(scores.shape[1]) == self.blank_id
        return jnp.where(is_blank, at_edge - held, scores), state

    def _read(self, state: jax.Array, labels: jax.Array) -> jax.Array:
        """Finds the state after one more token, `[rows]`; the blank is read at the beginning."""
        low, end = self.first[state], self.first[state + 1]

        def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = (low + high) // 2
            before, is_open = self.tokens[middle] < labels, low < high
            return (
                jnp.where(is_open & before, middle + 1, low),
                jnp.where(is_open & ~before, middle, high),
            )

        low, _ = jax.lax.fori_loop(0, self.widest.bit_length(), halve, (low, end))
        is_listed = (low < end) & (self.tokens[low] == labels)
        read = jnp.where(is_listed, self.reached[low], self.default_reached[labels])
        return jnp.where(labels == self.blank_id, state, read)

    def _overwrite(self, scores: jax.Array, state: jax.Array) -> jax.Array:
        """Overwrites scores `[rows, vocab]` where a state lists the token."""
        begin, end = self.first[state], self.first[state + 1]
        places = jnp.arange(_CHUNK)

        def write(chunk: jax.Array, scores: jax.Array) -> jax.Array:
            # [rows, _CHUNK]; gathers clamp what is behind the table, and it is masked here.
            listed = begin[:, None] + chunk * _CHUNK + places
            tokens = jnp.where(listed < end[:, None], self.tokens[listed], scores.shape[1])
            return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(
                scores, tokens, self.earned[listed]
            )

        chunks = (jnp.max(end - begin) + _CHUNK - 1) // _CHUNK
        return jax.lax.fori_loop(0, chunks, write, scores)


class _Automaton:
    """An Aho-Corasick automaton over bytes; node 0 is the empty string.

    Attributes:
        children: The nodes that continue each node, by the next byte.
        failure: The longest proper suffix of each node that is a node.
        held: The share of the bonus of the phrases that each node is a part of.
        earned: The bonus of the phrases that end at each node.
        order: All nodes, shorter ones first.
    """

    def __init__(self) -> None:
        self.children: list[dict[int, int]] = [{}]
        self.failure = [0]
        self.held = [0.0]
        self.earned = [0.0]
        self.own = [0.0]  # Of the phrase that is the whole node.
        self.order: list[int] = []

    def add(self, opens: bytes, content: bytes, closes: bytes, bonus: float) -> None:
        """Adds a phrase between two edges, which alone earn nothing."""
        node = 0
        for place, byte in enumerate(opens + content):
            following = self.children[node].get(byte)
            if following is None:
                following = self._node(node, byte)
            node = following
            done = place + 1 - len(opens)
            # Not at the end of a phrase without an edge: there, the bonus is earned.
            if done > 0 and (closes or done < len(content)):
                self.held[node] = max(self.held[node], bonus * done / len(content))
        if closes:
            node = self.children[node].get(closes[0]) or self._node(node, closes[0])
        self.own[node] = max(self.own[node], bonus)

    def _node(self, parent: int, byte: int) -> int:
        node = len(self.children)
        self.children[parent][byte] = node
        self.children.append({})
        for values in (self.held, self.earned, self.own):
            values.append(0.0)
        self.failure.append(0)
        return node

    def finish(self) -> None:
        """Finds the failure of each node, and with it the phrases that end there."""
        queue = deque([0])
        while queue:
            node = queue.popleft()
            self.order.append(node)
            failure = self.failure[node]
            self.earned[node] = self.own[node] + (self.earned[failure] if node else 0.0)
            # A shorter suffix may be a larger part of another phrase.
            self.held[node] = max(self.held[node], self.held[failure])
            for byte, child in self.children[node].items():
                self.failure[child] = self.step(failure, byte) if node else 0
                queue.append(child)

    def step(self, node: int, byte: int) -> int:
        """Returns the node after one more byte."""
        while node and byte not in self.children[node]:
            node = self.failure[node]
        return self.children[node].get(byte, 0)

    def walk(self, node: int, content: bytes) -> tuple[int, float]:
        """Returns the node after more bytes, and the bonus that they earn on the way.

        A node that nothing continues is as good as its longest suffix that something continues.
        """
        earned = 0.0
        for byte in content:
            node = self.step(node, byte)
            earned += self.earned[node]
        while node and not self.children[node]:
            node = self.failure[node]
        return node, earned


def _over_tokens(automaton: _Automaton, steps: Sequence[bytes | None], blank_id: int) -> PhraseBias:
    """Turns an automaton over bytes into one over tokens."""
    trie: dict = {}  # The tokens by their bytes; those that end at a place under None.
    for token, content in enumerate(steps):
        if content:
            place = trie
            for byte in content:
                place = place.setdefault(byte, {})
            place.setdefault(None, []).append(token)
    edge = _EDGE.encode()[0]

    def exceptions(node: int) -> set[int]:
        """Lists the tokens that extend a node itself, or complete a phrase by more than an edge."""
        found: set[int] = set()
        todo = [(node, trie, 0)]
        while todo:
            at, place, depth = todo.pop()
            found.update(place.get(None, ()) if depth else ())
            is_plain = depth == 1 and at == automaton.children[node].get(edge)
            if depth and automaton.own[at] and not is_plain:
                found.update(_below(place))
                continue
            for byte, child in automaton.children[at].items():
                if byte in place:
                    todo.append((child, place[byte], depth + 1))
        return found

    listed: list[set[int]] = [set() for _ in automaton.children]
    at_edge = np.zeros(len(listed), np.float32)
    for node in automaton.order[1:]:
        # The suffixes of a node are shorter, and come before it.
        failure = automaton.failure[node]
        if automaton.children[node]:  # No walk ends at the others.
            listed[node] = exceptions(node) | listed[failure]
        completed = automaton.children[node].get(edge)
        own = 0.0 if completed is None else automaton.own[completed]
        at_edge[node] = own + at_edge[failure]

    def outcome(node: int, token: int) -> tuple[int, float]:
        content = steps[token]
        if content is None:
            return 0, 0.0
        reached, earned = automaton.walk(node, content)
        return reached, earned + automaton.held[reached]

    held = np.asarray(automaton.held, np.float32)
    defaults = [outcome(0, token) for token in range(len(steps))]
    default_reached = np.array([reached for reached, _ in defaults], np.int32)
    default_earned = np.array([earned for _, earned in defaults], np.float32)
    ordered = [sorted(tokens) for tokens in listed]
    entries = [
        (token, *outcome(node, token)) for node, tokens in enumerate(ordered) for token in tokens
    ]
    # One entry at least, so that gathers have something to read.
    tokens, reached, earned = zip(*entries, strict=True) if entries else ((0,), (0,), (0.0,))
    counts = np.array([len(tokens) for tokens in ordered])
    of_state = np.repeat(np.arange(len(counts)), counts)
    gains = np.asarray(earned, np.float64)[: len(of_state)] - held[of_state]
    return PhraseBias(
        first=jnp.asarray(np.concatenate([[0], np.cumsum(counts)]), jnp.int32),
        tokens=jnp.asarray(tokens, jnp.int32),
        reached=jnp.asarray(reached, jnp.int32),
        earned=jnp.asarray(earned, jnp.float32),
        held=jnp.asarray(held),
        at_edge=jnp.asarray(at_edge),
        default_reached=jnp.asarray(default_reached),
        default_earned=jnp.asarray(default_earned),
        is_edge=jnp.asarray(
            [content is not None and content[:1] == _EDGE.encode() for content in steps]
        ),
        start=automaton.step(0, edge),
        blank_id=blank_id,
        widest=int(counts.max()),
        largest_gain=float(
            max(
                gains.max(initial=0.0),
                default_earned.max(initial=0.0) + (at_edge - held).max(initial=0.0),
            )
        ),
    )


def _below(place: dict) -> Iterator[int]:
    """Yields the tokens at a place of a trie and below it."""
    todo = [place]
    while todo:
        for key, value in todo.pop().items():
            if key is None:
                yield from value
            else:
                todo.append(value)


def _separates(character: str) -> bool:
    """Returns whether a character is no part of a word: a space, punctuation or a symbol."""
    return unicodedata.category(character)[0] in "PZS"


def _steps(content: bytes, marks: set[str]) -> bytes:
    """Returns the bytes of a token with an edge for what separates words, but for some marks."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content  # A part of a letter.
    return "".join(_EDGE if _separates(c) and c not in marks else c for c in text).encode()


def written_forms(phrase: str, vocabulary: Vocabulary) -> list[str]:
    """Returns the forms of a phrase that a vocabulary can write.

    Args:
        phrase: The phrase as a user writes it.
        vocabulary: The model's vocabulary.

    Returns:
        The phrase as it is and with a capital at its beginning, as at the beginning of a sentence;
        where the vocabulary lacks its letters, in lower case or else in capitals, as models of
        normalised texts write. Empty where it can write none of them.
    """

    def writes(text: str) -> bool:
        ids = vocabulary.encode(text)
        return bool(ids) and UNK_ID not in ids and spelled(vocabulary.decode(ids)) == text

    phrase = spelled(phrase)
    cased = [phrase, phrase[:1].upper() + phrase[1:]]
    for forms in (cased, [spelled(phrase.lower())], [spelled(phrase.upper())]):
        found = [form for form in dict.fromkeys(forms) if form and writes(form)]
        if found:
            return found
    return []


def parse_phrases(lines: Sequence[str], origin: str) -> dict[str, float]:
    """Reads a list of phrases.

    Args:
        lines: One phrase per line, optionally followed by a tab and a weight above 0; empty lines
            are skipped. The weight is 1 by default, and of a repeated phrase the last one counts.
        origin: Name of the file, for messages.

    Returns:
        Weight of each phrase.

    Raises:
        UserError: A weight is not a number above 0, or there is no phrase.
    """
    phrases: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        phrase, tab, weight = line.strip("\r\n").rpartition("\t")
        if not tab:
            phrase, weight = weight, "1"
        phrase = spelled(phrase)
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if tab and not (0 < value < math.inf and phrase):
            raise UserError(
                f"line {number} of {origin}: a line is a phrase, or a phrase, a tab and a weight "
                f"above 0; this one has {weight!r} after its tab"
            )
        if phrase:
            phrases[phrase] = value
    if not phrases:
        raise UserError(f"there is no phrase in {origin}; write one per line")
    return phrases
