"""A tiny corpus like the real ones: a TFDS data set with random access, and a vocabulary."""

import dataclasses
import pathlib

import numpy as np
import pytest

REMEDY = "maestro prepare tinyvox"
WORDS = {
    "de": "eins zwei drei vier fünf sechs sieben acht neun zehn".split(),
    "sl": "ena dve tri štiri pet šest sedem osem devet deset".split(),
}
ENGLISH = "one two three four five six seven eight nine ten".split()
SIZES = {
    "speech_{l}_train": {"de": 11, "sl": 5},
    "text_{l}_train": {"de": 17, "sl": 6},
    "mt_{l}_train": {"de": 9, "sl": 4},
    "paired_{l}_train": {"de": 13, "sl": 7},
    "paired_{l}_validation": {"de": 5, "sl": 3},
    "paired_{l}_test": {"de": 4, "sl": 2},
}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Where the tiny corpus lies, and every record of it in order."""

    root: pathlib.Path
    records: dict


def make_records(split, language, size):
    rng = np.random.default_rng([len(split), size, ord(language[0])])
    for number in range(size):
        digits = rng.integers(0, 10, rng.integers(1, 6))
        text = " ".join(WORDS[language][digit] for digit in digits)
        translation = " ".join(ENGLISH[digit] for digit in digits)
        audio = rng.integers(-9000, 9000, rng.integers(100, 400)).astype(np.int16)
        if split.startswith("speech"):
            text = translation = ""
        if split.startswith(("text", "mt")):
            audio = np.zeros(0, np.int16)
        yield {
            "audio": audio,
            "text": text,
            "raw_text": " ".join(map(str, digits)),
            "translation": "" if split.startswith("text") else translation,
            "language": language,
            "speaker": f"speaker{number % 3}",
            "id": f"{split}-{number:03d}",
        }


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    import tensorflow_datasets as tfds

    from maestro_jax.data.indexed_source import IndexedTfdsSource
    from maestro_jax.data.stream_tasks import PreparedVocabulary, add_stream_task
    from maestro_jax.data.task_registry import add_language_mixture
    from maestro_jax.text.vocabularies import train_sentencepiece

    root = tmp_path_factory.mktemp("data")
    records = {
        pattern.format(l=language): list(make_records(pattern.format(l=language), language, size))
        for pattern, sizes in SIZES.items()
        for language, size in sizes.items()
    }
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict(
        {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            **dict.fromkeys(("text", "raw_text", "translation", "language", "speaker", "id"), text),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tinyvox",
        config="small",
        version="1.0.0",
        features=features,
        split_datasets={name: list(enumerate(kept)) for name, kept in records.items()},
        data_dir=root,
        file_format="array_record",
        disable_shuffling=True,
    )
    train_texts = [
        record[name]
        for split, examples in records.items()
        if split.endswith("train")
        for record in examples
        for name in ("text", "translation")
    ]
    train_sentencepiece(train_texts, root / "vocabularies" / "tinyvox.model", 60)
    vocabulary = PreparedVocabulary("vocabularies/tinyvox.model", REMEDY)
    for stream in ("speech", "text", "paired", "mt", "st"):
        names = []
        for language in WORDS:
            stem = "paired" if stream == "st" else stream
            splits = {"train": f"{stem}_{language}_train"}
            if stem == "paired":
                splits |= {s: f"paired_{language}_{s}" for s in ("validation", "test")}
            names.append(f"tinyvox_{stream}_{language}")
            add_stream_task(
                names[-1],
                stream=stream,
                source=IndexedTfdsSource("tinyvox/small", splits, REMEDY),
                languages=(language,),
                vocabulary=vocabulary,
            )
        add_language_mixture(f"tinyvox_{stream}", names)
    add_language_mixture(
        "tinyvox_paired_even", ["tinyvox_paired_de", "tinyvox_paired_sl"], temperature=1e9
    )
    return Corpus(root, records)
