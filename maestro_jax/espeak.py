"""Synthesises speech, and converts texts to phonemes, with the espeak-ng library in this process.

The library keeps state from one sentence to the next (phases of oscillators, noise generators,
buffers), so that a sentence would sound slightly different after another one. Each call here
therefore loads the library anew, which takes about two milliseconds, and seeds its noise: the same
call always returns the same samples. Converting texts to phonemes leaves no state behind.
"""

from __future__ import annotations

import _ctypes
import atexit
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import importlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal

from maestro_jax.errors import UserError

SAMPLE_RATE = 16_000
"""Hertz; the rate of all audio in this package."""

VOICES = (
    "", "m1", "m2", "m4", "m5", "m7", "f1", "f3", "f4", "f5",
    "Alex", "Andy", "Diogo", "Gene", "Mario", "Mike", "Storm", "adam",
    "anika", "ed", "robert", "steph", "Andrea", "antonio", "sandro",
)  # fmt: skip
"""Voice variants that are plain human voices: no robots, whispers, echoes or shrill voices."""

# Constants of espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_RETRIEVAL, _AUDIO_OUTPUT_SYNCHRONOUS = 1, 2
_INITIALIZE_DONT_EXIT = 0x8000
_INITIALIZE_PHONEME_EVENTS = 0x0001
_INITIALIZE_PHONEME_IPA = 0x0002
_CHARS_UTF8 = 1
_PHONEMES_IPA = 0x02
_RATE, _PITCH = 1, 3
_EVENT_LIST_TERMINATED, _EVENT_PHONEME = 0, 7
_MAX_PHONEME_BYTES = 8

_STRESS = re.compile("[\u02c8\u02cc]")
# Stress, and the marks of words that it takes for another language's.
_REMOVED = re.compile(r"\([a-z-]+\)|[\u02c8\u02cc]")

# The library copies its data path into a buffer of about 160 characters.
_MAX_DATA_PATH = 120


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h; of its union, only the name is used."""

    _fields_ = [  # noqa: RUF012 - ctypes wants a list.
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * _MAX_PHONEME_BYTES),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Phoneme:
    """A phoneme of synthesised speech.

    Attributes:
        symbol: Symbol of the IPA, without stress; empty for a pause.
        begin: First sample, at 16 kHz.
        end: First sample after the phoneme.
    """

    symbol: str
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class Speech:
    """Synthesised speech.

    Attributes:
        audio: int16 `[samples]` at 16 kHz.
        phonemes: Consecutive phonemes from the first sample to the last. The resolution of their
            times is a millisecond.
    """

    audio: np.ndarray
    phonemes: tuple[Phoneme, ...]


def synthesise(
    text: str, language: str, *, variant: str = "", words_per_minute: int = 175, pitch: int = 50
) -> Speech:
    """Synthesises a text.

    Args:
        text: Text with punctuation.
        language: A language of espeak-ng, such as `de`.
        variant: Voice variant, a file name in `voices/!v` of the library's data; "" is the default
            voice.
        words_per_minute: Speaking rate, 80 to 450.
        pitch: Pitch, 0 to 99; 50 is the default of the voice.

    Returns:
        The audio and the library's own times of the phonemes.

    Raises:
        UserError: espeak-ng is not installed, does not load, or has no such voice.
    """
    voice = f"{language}+{variant}" if variant else language
    encoded = text.encode() + b"\0"
    with _lock:
        library, data_path = _load()
        chunks: list[bytes] = []
        starts: list[tuple[int, str]] = []

        def receive(samples: ctypes._Pointer, count: int, events: ctypes._Pointer) -> int:
            if samples and count > 0:
                chunks.append(ctypes.string_at(samples, 2 * count))
            index = 0
            while events and events[index].type != _EVENT_LIST_TERMINATED:
                event = events[index]
                if event.type == _EVENT_PHONEME:
                    # ctypes ends a name at its first zero byte.
                    starts.append((event.audio_position, event.name.decode(errors="replace")))
                index += 1
            return 0

        callback = _CALLBACK(receive)
        try:
            options = _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_PHONEME_IPA | _INITIALIZE_DONT_EXIT
            rate = library.espeak_Initialize(
                _AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path.encode(), options
            )
            if rate <= 0:
                raise UserError(f"espeak-ng found no usable voice data in {data_path}; {_REMEDY}")
            library.espeak_SetSynthCallback(callback)
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise UserError(f"espeak-ng has no voice {voice!r}")
            library.espeak_SetParameter(_RATE, words_per_minute, 0)
            library.espeak_SetParameter(_PITCH, pitch, 0)
            # Initialising has seeded both generators of noise, the library's own and the C
            # library's, with the time of day.
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            ctypes.CDLL(None).srand(1)
            status = library.espeak_Synth(
                encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, _CHARS_UTF8, None, None
            )
            if status != 0:
                raise UserError(f"espeak-ng could not synthesise {text!r} with the voice {voice!r}")
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)
    audio = _resample(np.frombuffer(b"".join(chunks), np.int16), rate)
    return Speech(audio, _phonemes(starts, len(audio)))


def _phonemes(starts: list[tuple[int, str]], samples: int) -> tuple[Phoneme, ...]:
    """Makes phonemes of their begins in milliseconds; drops empty ones and joins pauses."""
    phonemes: list[Phoneme] = []
    begins = [min(milliseconds * SAMPLE_RATE // 1000, samples) for milliseconds, _ in starts]
    ends = [*begins[1:], samples]
    if begins and begins[0] > 0:
        phonemes.append(Phoneme("", 0, begins[0]))
    for (_, name), begin, end in zip(starts, begins, ends, strict=True):
        symbol = _STRESS.sub("", name)
        if end <= begin:
            continue
        if phonemes and not symbol and not phonemes[-1].symbol:
            begin = phonemes.pop().begin
        phonemes.append(Phoneme(symbol, begin, end))
    return tuple(phonemes)


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate != SAMPLE_RATE:
        up, down, window = _polyphase(rate)
        samples = signal.resample_poly(samples.astype(np.float64), up, down, window=window)
    return np.clip(np.rint(samples), -32768, 32767).astype(np.int16)


@functools.cache
def _polyphase(rate: int) -> tuple[int, int, np.ndarray]:
    """Returns the factors and the low-pass filter of a resampler: ten zero crossings per side."""
    divisor = int(np.gcd(rate, SAMPLE_RATE))
    up, down = SAMPLE_RATE // divisor, rate // divisor
    larger = max(up, down)
    return up, down, signal.firwin(20 * larger + 1, 1 / larger, window=("kaiser", 5.0))


def phonemes(texts: Sequence[str], language: str) -> list[str]:
    """Converts texts to phonemes.

    MAESTRO was trained with phonemes as well as with letters. Stress is left out, for it says
    little about how long a sound is and spelling does not show it.

    Args:
        texts: Sentences.
        language: A language of espeak-ng, such as `de`; Chinese is `cmn` or `zh`.

    Returns:
        For each text the words in IPA, without stress, separated by blanks.

    Raises:
        UserError: espeak-ng is not installed, does not load, or knows no such language.
    """
    with _phonemes_lock:
        library = _phonemes_library()
        voice = _VOICES.get(language, language)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f"espeak-ng has no pronunciation of {language!r}; leave out phonemes")
        return [_pronounced(library, text) for text in texts]


def voice(language: str) -> str | None:
    """Returns espeak-ng's name of the voice of a language, such as `cmn` for `zh`.

    Args:
        language: ISO 639-1 code, or a tag such as `en-GB`.

    Returns:
        None if there is no such voice. A tag without a voice of its own has that of its language.

    Raises:
        UserError: espeak-ng is not installed or does not load.
    """
    tag = language.lower()
    with _phonemes_lock:
        library = _phonemes_library()
        for code in filter(None, (tag, tag.partition("-")[0])):
            name = _VOICES.get(code, code)
            if library.espeak_SetVoiceByName(name.encode()) == 0:
                return name
    return None


_phonemes_lock = threading.Lock()
_VOICES = {"zh": "cmn", "no": "nb"}


def _pronounced(library: ctypes.CDLL, text: str) -> str:
    # It reads up to a zero, and moves the pointer on clause by clause, to NULL at the end.
    content = ctypes.create_string_buffer(text.replace("\0", "").encode())
    place = ctypes.c_void_p(ctypes.addressof(content))
    clauses = []
    while place.value:
        found = library.espeak_TextToPhonemes(ctypes.byref(place), _CHARS_UTF8, _PHONEMES_IPA)
        clauses.append((found or b"").decode())
    return " ".join(_REMOVED.sub("", " ".join(clauses)).split())


@functools.cache
def _phonemes_library() -> ctypes.CDLL:
    """Loads the library, once per process.

    It is a copy of the file: `synthesise` needs one that it can unload.
    """
    directory = tempfile.mkdtemp(prefix="espeak-ng-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    with _loading():
        path, data_path = library_files()
        library = ctypes.CDLL(str(shutil.copy(path, Path(directory) / "phonemes.so")))
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    rate = library.espeak_Initialize(
        _AUDIO_OUTPUT_RETRIEVAL, 0, data_path.encode(), _INITIALIZE_DONT_EXIT
    )
    if rate <= 0:
        raise UserError(f"espeak-ng found no usable voice data in {data_path}")
    return library


_REMEDY = "pip install maestro_jax[minivox]"


def library_files() -> tuple[str, str]:
    """Returns the path of the library, and that of its data, short enough for its buffer.

    Raises:
        UserError: espeak-ng is not installed.
    """
    try:
        loader: Any = importlib.import_module("espeakng_loader")
    except ImportError:
        raise UserError(f"synthesising speech needs the espeak-ng library; {_REMEDY}") from None
    return loader.get_library_path(), _shorten(loader.get_data_path())


def _load() -> tuple[ctypes.CDLL, str]:
    with _loading():
        path, data_path = library_files()
        return ctypes.CDLL(path), data_path


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the espeak-ng library does not load ({reason}); {_REMEDY}") from None


def _shorten(path: str) -> str:
    """Returns a path to the same directory that fits into the library's buffer."""
    if len(path) <= _MAX_DATA_PATH:
        return path
    # One link per path and user, which all processes share.
    name = hashlib.blake2b(f"{os.getuid()} {path}".encode(), digest_size=8).hexdigest()
    link = Path(tempfile.gettempdir()) / f"espeak-ng-data-{name}"
    if not link.is_symlink() or os.readlink(link) != path:
        new = link.with_name(f"{link.name}.{os.getpid()}")
        new.symlink_to(path)
        os.replace(new, link)
    return str(link)
