"""MiniVox: a speech corpus that builds itself, in seconds, without a download.

Voices of espeak-ng speak numbers, dates, times, prices and measures in English, German, French,
Spanish, Polish and Slovene. Every sentence is known in all languages, so transcripts and English
translations come for free. It is made to try out a whole system: speech is easy, but real enough
that a model has to listen (many voices, noise, rooms), and test voices and test sentences never
occur in training.

Configs: `small` is what the demo trains on (three languages, about 3 hours); `full` has six
languages and as many hours as asked for; `tiny` is made in seconds, to see whether things run.
Splits are named `{stream}_{language}_{part}`:

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
from maestro_jax.data.data_dir import data_root
from maestro_jax.errors import UserError, near_misses
from maestro_jax.minivox import config as corpus_config
from maestro_jax.minivox.config import CorpusConfig
from maestro_jax.progress import Progress
from maestro_jax.vocabularies import byte_vocabulary, sentencepiece_vocabulary

if TYPE_CHECKING:
    from maestro_jax.minivox.pool import Pool


@dataclasses.dataclass(eq=False, kw_only=True)
class MiniVoxConfig(tfds.core.BuilderConfig):
    """A MiniVox of some size.

    Attributes:
        corpus: What it consists of.
        workers: Processes that make it; one for every core by default. The result is the same.

    Example:
        >>> config = MiniVoxConfig(name="mine", corpus=config.full(hours=100))
        >>> prepare(config, "/data")
    """

    corpus: CorpusConfig = dataclasses.field(default_factory=lambda: corpus_config.SMALL)
    workers: int | None = None


class Minivox(tfds.core.GeneratorBasedBuilder):
    """Builds MiniVox as a TFDS data set."""

    # TFDS would look for this file where the module's name says; a checkout keeps it elsewhere.
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
            name="tiny", description="Three languages, minutes.", corpus=corpus_config.TINY
        ),
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
            # Examples are drawn in random order; shuffling them again would only cost time.
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
        del dl_manager
        # Needs packages that reading does not.
        from maestro_jax.minivox.pool import Pool

        sizes = self.builder_config.corpus.splits()
        # Splits are generated one after the other: all share the processes and the progress.
        shared = contextlib.ExitStack()
        pool = shared.enter_context(Pool(self.builder_config.workers))
        # Only speech is counted: text takes no time.
        spoken = sum(size for split, size in sizes.items() if _is_spoken(split))
        progress = shared.enter_context(
            Progress(spoken, f"speaking {self.name}/{self.builder_config.name}")
        )
        self._shared = shared
        return {
            split: self._generate_examples(pool, progress, split, size)
            for split, size in sizes.items()
        }

    def _generate_examples(
        self,
        pool: Pool,
        progress: Progress,
        split: str,
        size: int,
    ) -> Iterator[tuple[int, dict[str, object]]]:
        examples = pool.examples(self.builder_config.corpus, split, size)
        for index, example in enumerate(examples):
            # An example also times its phonemes; the data set keeps what tasks read.
            yield index, {name: getattr(example, name) for name in self.info.features}
            if _is_spoken(split):
                progress.update()

    def download_and_prepare(self, **arguments: object) -> None:
        """Builds the data set; see `prepare`, which needs no arguments."""
        try:
            super().download_and_prepare(**arguments)
        finally:
            if shared := self.__dict__.pop("_shared", None):
                shared.close()


def vocabulary_path(config: str, data_dir: str | Path | None = None) -> Path:
    """Where the vocabulary of a config is kept."""
    return data_root(data_dir) / "vocabularies" / f"minivox_{config}.model"


def prepare(config: str | MiniVoxConfig, data_dir: str | Path | None = None) -> None:
    """Builds the corpus and its vocabulary, unless they are there.

    A second process that prepares the same config waits for the first. After an interruption, a
    call starts again with what was not finished.

    Args:
        config: `small`, `full`, `tiny`, or a config of one's own with a name of its own.
        data_dir: See `data_root`.

    Raises:
        UserError: There is no such config, a package is missing, or the directory holds another
            corpus under the same name.
    """
    config = _config(config)
    root = data_root(data_dir)
    with _lock(root / "minivox" / f".{config.name}.lock"):
        _build(config, root)
        model = vocabulary_path(config.name, root)
        if not model.exists():
            with Progress(1, "training the vocabulary") as progress:
                _make_vocabulary(config, root, model)
                progress.update()


def _config(config: str | MiniVoxConfig) -> MiniVoxConfig:
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
        wanted = _metadata(config.corpus)
        if builder.info.metadata.get("corpus") != wanted:
            raise UserError(
                f"{directory} holds a MiniVox of other sizes; remove it or give the config "
                f"another name than {config.name!r}."
            )
        return
    # What interrupted calls have left; nobody else is writing, for the lock is held.
    for leftover in directory.parent.glob(f"{directory.name}.incomplete*"):
        shutil.rmtree(leftover)
    # TFDS wants a directory for downloads even where there are none.
    with _quiet(), tempfile.TemporaryDirectory() as nothing:
        builder.download_and_prepare(
            download_dir=nothing,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            file_format="array_record",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the bars and messages of TFDS; our own progress goes to standard error."""
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


def _make_vocabulary(config: MiniVoxConfig, root: Path, path: Path) -> None:
    if config.corpus.vocab_kind == "byte":
        sentencepiece_vocabulary.write_atomically(path, byte_vocabulary.CONTENT)
        return
    texts = _training_texts(_builder(config, root))
    sentencepiece_vocabulary.train_sentencepiece(
        texts, path, config.corpus.vocab_size, config.corpus.vocab_kind
    )


def _training_texts(builder: Minivox) -> Iterable[str]:
    """All texts and translations that a model may be trained on."""
    for split in builder.info.splits:
        if split.endswith("_train") and not split.startswith("speech_"):
            for example in builder.as_data_source(split):
                for field in ("text", "translation"):
                    yield example[field].decode()


def _is_spoken(split: str) -> bool:
    return split.startswith(("paired_", "speech_"))


def _metadata(corpus: CorpusConfig) -> dict[str, object]:
    """The fields of a corpus, as they come back from a JSON file."""
    return json.loads(json.dumps(dataclasses.asdict(corpus)))
