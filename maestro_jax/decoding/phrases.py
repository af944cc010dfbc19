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
        *("first", "tokens", "reached", "earned", "held", "at_edge", "in_word"),
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
        in_word: 0 for states in which a word begins and 1 for others, int32 `[states]`.
        default_reached: The state that each token leads to where it is not listed, at the beginning
            of a word and elsewhere, int32 `[2, vocab]`.
        default_earned: What it earns there, with what that state holds, float32 `[2, vocab]`.
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
    in_word: jax.Array
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
        kept = {c for phrase in phrases for c in phrase if _separates(c)} - {_EDGE}
        steps = [None if content is None else _steps(content, kept) for content in token_bytes]
        # What separates the words of some phrase stays itself, and is an edge as well, if a byte.
        edges = [_EDGE.encode(), *(mark.encode() for mark in sorted(kept) if mark.isascii())]
        automaton = _Automaton(edges)
        for phrase, bonus in phrases.items():
            automaton.add(
                phrase.encode(),
                bonus,
                opens=_UNSPACED.match(phrase[0]) is None,
                closes=_UNSPACED.match(phrase[-1]) is None,
            )
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
        scores = self.default_earned[self.in_word[state]] + jnp.where(self.is_edge, at_edge, 0.0)
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
        default = self.default_reached[self.in_word[state], labels]
        read = jnp.where(is_listed, self.reached[low], default)
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

    Args:
        edges: The bytes that separate words. All of them lead from the empty string to one node.

    Attributes:
        children: The nodes that continue each node, by the next byte.
        failure: The longest proper suffix of each node that is a node.
        held: The share of the bonus of the phrases that each node is a part of.
        own: The bonus of the phrase that ends at each node.
        earned: The bonus of all phrases that end there.
        order: All nodes, shorter ones first.
        edge: The node after an edge, where words begin; 0 if no phrase begins with a word.
    """

    def __init__(self, edges: Sequence[bytes]) -> None:
        self.children: list[dict[int, int]] = [{}]
        self.failure = [0]
        self.held = [0.0]
        self.earned = [0.0]
        self.own = [0.0]
        self.order: list[int] = []
        self.edge = 0
        self._edges = [edge[0] for edge in edges]

    def add(self, content: bytes, bonus: float, *, opens: bool, closes: bool) -> None:
        """Adds a phrase.

        Args:
            content: The phrase.
            bonus: Its bonus.
            opens: Whether it begins at an edge.
            closes: Whether it ends at an edge.
        """
        if opens and not self.edge:
            self.edge = self._node(0, self._edges[0])
            self.children[0] |= dict.fromkeys(self._edges, self.edge)
        node = self.edge if opens else 0
        for done, byte in enumerate(content, start=1):
            node = self.children[node].get(byte) or self._node(node, byte)
            # Not at the end of a phrase without an edge: there, the bonus is earned.
            if closes or done < len(content):
                self.held[node] = max(self.held[node], bonus * done / len(content))
        ends = [node]
        if closes:
            ends = [self.children[node].get(b) or self._node(node, b) for b in self._edges]
        for end in ends:
            self.own[end] = max(self.own[end], bonus)

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
                # Several edges lead to one node.
                if node or child != self.edge or byte == self._edges[0]:
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
    in_word = np.ones(len(listed), np.int32)
    for node in automaton.order[1:]:
        # The suffixes of a node are shorter, and come before it.
        failure = automaton.failure[node]
        if automaton.children[node]:  # No walk ends at the others.
            listed[node] = exceptions(node)
            # What begins a word is in a table of its own, and not in the list of every edge.
            if failure != automaton.edge:
                listed[node] |= listed[failure]
        in_word[node] = 0 if node == automaton.edge else in_word[failure]
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
    in_words = [outcome(0, token) for token in range(len(steps))]
    at_beginnings = list(in_words)
    for token in listed[automaton.edge]:
        at_beginnings[token] = outcome(automaton.edge, token)
    listed[automaton.edge] = set()
    defaults = (at_beginnings, in_words)
    default_reached = np.array([[reached for reached, _ in row] for row in defaults], np.int32)
    default_earned = np.array([[earned for _, earned in row] for row in defaults], np.float32)
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
        in_word=jnp.asarray(in_word),
        default_reached=jnp.asarray(default_reached),
        default_earned=jnp.asarray(default_earned),
        is_edge=jnp.asarray(
            [content is not None and content[:1] == _EDGE.encode() for content in steps]
        ),
        start=automaton.edge,
        blank_id=blank_id,
        widest=int(counts.max()),
        largest_gain=max(
            float(np.max(gains, initial=0.0)),
            float(np.max(default_earned, initial=0.0)) + float(np.max(at_edge - held, initial=0.0)),
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


def _steps(content: bytes, kept: set[str]) -> bytes:
    """Returns the bytes of a token with an edge for what separates words, if it is not kept."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content  # A part of a letter.
    return "".join(_EDGE if _separates(c) and c not in kept else c for c in text).encode()


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
