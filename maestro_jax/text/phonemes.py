"""Phonemes of texts through the espeak-ng library, in this process.

MAESTRO was trained with phonemes as well as with letters. What espeak-ng gives are letters of the
IPA; here stress is left out, for it says little about how long a sound is and spelling does not
show it, and so are the marks of words that it takes for another language's.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from maestro_jax import espeak
from maestro_jax.errors import UserError

# Constants of espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_RETRIEVAL = 1
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_IPA = 0x02

_REMOVED = re.compile(r"\([a-z-]+\)|[\u02c8\u02cc]")


def phonemes(texts: Sequence[str], language: str) -> list[str]:
    """Converts texts to phonemes.

    Args:
        texts: Sentences.
        language: A language of espeak-ng, such as `de`; Chinese is `cmn` or `zh`.

    Returns:
        For each text the words in IPA, without stress, separated by blanks.

    Raises:
        UserError: espeak-ng is not installed, does not load, or knows no such language.
    """
    with _lock:
        library = _library()
        voice = _VOICES.get(language, language)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f"espeak-ng does not know how {language!r} is pronounced")
        return [_pronounced(library, text) for text in texts]


_lock = threading.Lock()
_VOICES = {"zh": "cmn", "no": "nb"}


def _pronounced(library: ctypes.CDLL, text: str) -> str:
    # It reads up to a zero, and moves the pointer on clause by clause, to NULL at the end.
    content = ctypes.create_string_buffer(text.replace("\0", "").encode())
    place = ctypes.c_void_p(ctypes.addressof(content))
    clauses = []
    while place.value:
        found = library.espeak_TextToPhonemes(ctypes.byref(place), _CHARS_UTF8, _IPA)
        clauses.append((found or b"").decode())
    return " ".join(_REMOVED.sub("", " ".join(clauses)).split())


@functools.cache
def _library() -> ctypes.CDLL:
    """Loads the library, once per process: converting text leaves no state behind.

    It is a copy of the file: `espeak.synthesise` needs one that it can unload.
    """
    path, data_path = espeak.library_files()
    directory = tempfile.mkdtemp(prefix="espeak-ng-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    library = ctypes.CDLL(str(shutil.copy(path, Path(directory) / "phonemes.so")))
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    rate = library.espeak_Initialize(
        _AUDIO_OUTPUT_RETRIEVAL, 0, data_path.encode(), _INITIALIZE_DONT_EXIT
    )
    if rate <= 0:
        raise UserError(f"espeak-ng found no usable voice data in {data_path}")
    return library
