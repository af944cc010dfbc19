"""MiniVox: a synthetic speech corpus, to try out a whole system without a download.

Voices of espeak-ng speak numbers, dates, times, prices and measures in English, German, French,
Spanish, Polish and Slovene. Sentences are generated in all languages, so each has a transcript and
an English translation. The speech is easy to recognise, but varies (many voices, noise, rooms), and
the voices and sentences of the test sets never occur in training.

The demo trains on the config `small` (three languages, about 3 hours). `full` has six languages of
about 10 hours each, `low_resource` a language with a minute of transcribed speech, `study` short
and clean utterances, of which studies take parts; `tiny` is made in seconds, to test whether a run
works. Splits are named `{stream}_{language}_{part}`:

| split | audio | text | translation |
|---|---|---|---|
| `paired_{language}_train`, `..._validation`, `..._test` | yes | yes | unless English |
| `speech_{language}_train` | yes | | |
| `text_{language}_train` | | yes | |
| `mt_{language}_train` | | yes | yes |
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow_datasets as tfds
from etils import epath

from maestro_jax.data.corpora.shards import record_features
from maestro_jax.data.data_dir import data_root, local_data_root
from maestro_jax.errors import UserError, near_misses
from maestro_jax.files import write_atomically
from maestro_jax.minivox import config as corpus_config
from maestro_jax.minivox.config import CorpusConfig
from maestro_jax.progress import Progress
from maestro_jax.text.vocabularies import BYTE_MODEL, train_sentencepiece

if TYPE_CHECKING:
    from maestro_jax.minivox.corpus import ExamplePool


@dataclasses.dataclass(eq=False, kw_only=True)
class MiniVoxConfig(tfds.core.BuilderConfig):
    """A config of MiniVox.

    Attributes:
        corpus: Sizes and sound of the corpus.
        workers: Number of processes that make it, by default one per core; it does not change the
            result.

    Example:
        >>> config = MiniVoxConfig(name="mine", corpus=config.full(hours=100))
        >>> prepare(config, "/data")
    """

    corpus: CorpusConfig = dataclasses.field(default_factory=lambda: corpus_config.SMALL)
    workers: int | None = None


class Minivox(tfds.core.GeneratorBasedBuilder):
    """Builds MiniVox as a TFDS data set."""

    # TFDS would derive the path of this file from the name of its module.
    code_path = epath.Path(__file__)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Six languages, sixteen kinds of sentences."}
    BUILDER_CONFIGS = [
        MiniVoxConfig(name="small", description="Three languages, about 3 hours."),
        MiniVoxConfig(
            name="low_resource",
            description="Three languages, one of them with a minute of transcribed speech.",
            corpus=corpus_config.LOW_RESOURCE,
        ),
        MiniVoxConfig(
            name="study",
            description="Three languages, of which studies take parts.",
            corpus=corpus_config.STUDY,
        ),
        MiniVoxConfig(
            name="tiny", description="Three languages, minutes.", corpus=corpus_config.TINY
        ),
        MiniVoxConfig(
            name="everyday",
            description="German about everything but dates.",
            corpus=corpus_config.EVERYDAY,
        ),
        MiniVoxConfig(name="calendar", description="German dates.", corpus=corpus_config.CALENDAR),
        MiniVoxConfig(
            name="full",
            description="Six languages, about 10 hours each.",
            corpus=corpus_config.full(),
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=record_features(),
            metadata=tfds.core.MetadataDict(corpus=_metadata(self.builder_config.corpus)),
            # Examples are independent of each other, so there is no need to shuffle them.
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
        # Imported here, for it needs packages of the extra `minivox`.
        from maestro_jax.minivox.corpus import ExamplePool

        sizes = self.builder_config.corpus.splits()
        # Splits are generated one after the other and share the processes and the progress bar.
        shared = contextlib.ExitStack()
        pool = shared.enter_context(ExamplePool(self.builder_config.workers))
        # Only speech is counted, since text takes no time.
        utterances = sum(size for split, size in sizes.items() if _has_audio(split))
        progress = shared.enter_context(
            Progress(utterances, f"synthesising {self.name}/{self.builder_config.name}")
        )
        self._shared = shared
        return {
            split: self._generate_examples(pool, progress, split, size)
            for split, size in sizes.items()
        }

    def _generate_examples(
        self,
        pool: ExamplePool,
        progress: Progress,
        split: str,
        size: int,
    ) -> Iterator[tuple[int, dict[str, object]]]:
        examples = pool.examples(self.builder_config.corpus, split, size)
        for index, example in enumerate(examples):
            # The times of phonemes, which tasks do not read, are left out.
            yield index, {name: getattr(example, name) for name in self.info.features}
            if _has_audio(split):
                progress.update()

    def download_and_prepare(self, **arguments: object) -> None:
        """Builds the data set; see `prepare`, which calls this with the right arguments."""
        try:
            super().download_and_prepare(**arguments)
        finally:
            if shared := self.__dict__.pop("_shared", None):
                shared.close()


def vocabulary_path(
    config: str, data_dir: str | Path | None = None, *, phonemes: bool = False
) -> Path:
    """Returns the path of the vocabulary of a config, of its letters or of its phonemes."""
    name = f"minivox_{config}_phonemes" if phonemes else f"minivox_{config}"
    return data_root(data_dir) / "vocabularies" / f"{name}.model"


def prepare(config: str | MiniVoxConfig, data_dir: str | Path | None = None) -> None:
    """Builds the corpus and its vocabulary, unless they exist.

    A second process that prepares the same config waits for the first one. After an interruption,
    the next call begins with the part that was not finished.

    Args:
        config: Name of a shipped config, or a config of one's own with another name.
        data_dir: Data root; see `data_root`.

    Raises:
        UserError: There is no such config, a package is missing, or the directory holds another
            corpus of the same name.
    """
    config = _find_config(config)
    root = local_data_root(data_dir)
    with _lock(root / "minivox" / f".{config.name}.lock"):
        _build(config, root)
        for phonemes in (False, True) if config.corpus.phonemes else (False,):
            model = vocabulary_path(config.name, root, phonemes=phonemes)
            if not model.exists():
                with Progress(1, "training the vocabulary") as progress:
                    _make_vocabulary(config, root, model, phonemes=phonemes)
                    progress.update()


def _find_config(config: str | MiniVoxConfig) -> MiniVoxConfig:
    if isinstance(config, MiniVoxConfig):
        return config
    if config not in Minivox.builder_configs:
        known = tuple(Minivox.builder_configs)
        raise UserError(
            f"MiniVox has no config {config!r}; configs: {' '.join(known)}."
            f"{near_misses(config, known)}"
        )
    return Minivox.builder_configs[config]


def _builder(config: MiniVoxConfig, root: Path) -> Minivox:
    return Minivox(config=config, data_dir=root, file_format="array_record")


def _build(config: MiniVoxConfig, root: Path) -> None:
    builder = _builder(config, root)
    directory = Path(builder.data_dir)
    if directory.exists():
        if builder.info.metadata.get("corpus") != _metadata(config.corpus):
            raise UserError(
                f"{directory} holds a MiniVox of other sizes; remove it or give the config "
                f"another name than {config.name!r}."
            )
        return
    # Leftovers of interrupted calls; no other process is writing, since this one holds the lock.
    for leftover in directory.parent.glob(f"{directory.name}.incomplete*"):
        shutil.rmtree(leftover)
    # TFDS needs a directory for downloads, even if there are none.
    with _quiet(), tempfile.TemporaryDirectory() as empty:
        builder.download_and_prepare(
            download_dir=empty,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            file_format="array_record",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides progress bars and messages of TFDS; our progress bar is on standard error."""
    tfds.display_progress_bar(enable=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(enable=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_vocabulary(config: MiniVoxConfig, root: Path, path: Path, *, phonemes: bool) -> None:
    if phonemes:
        texts = _training_phonemes(_builder(config, root))
        train_sentencepiece(texts, path, config.corpus.vocab_size, "char")
        return
    if config.corpus.vocab_kind == "byte":
        write_atomically(path, BYTE_MODEL)
        return
    texts = _training_texts(_builder(config, root))
    train_sentencepiece(texts, path, config.corpus.vocab_size, config.corpus.vocab_kind)


def _training_texts(builder: Minivox) -> Iterable[str]:
    """Yields the texts and translations of all training splits."""
    for split in builder.info.splits:
        if split.endswith("_train") and not split.startswith("speech_"):
            for example in builder.as_data_source(split):
                for field in ("text", "translation"):
                    yield example[field].decode()


def _training_phonemes(builder: Minivox) -> Iterable[str]:
    """Yields the texts of pairs and the unspoken ones of all training splits, as phonemes."""
    from maestro_jax.espeak import phonemes

    for split in builder.info.splits:
        stream, language, part = split.split("_")
        if stream in ("paired", "text") and part == "train":
            texts = [each["text"].decode() for each in builder.as_data_source(split)]
            yield from phonemes(texts, language)


def _has_audio(split: str) -> bool:
    return split.startswith(("paired_", "speech_"))


def _metadata(corpus: CorpusConfig) -> dict[str, object]:
    """Returns the fields of a corpus as a JSON file holds them."""
    fields = dataclasses.asdict(corpus)
    # Phonemes are made of the texts when they are read.
    del fields["phonemes"]
    if not corpus.kinds:
        # Corpora that were made before there was a choice have all kinds.
        del fields["kinds"]
    return json.loads(json.dumps(fields))
