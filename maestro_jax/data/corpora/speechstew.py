"""The corpora of SpeechStew that come on paid discs or in many versions: as one's own manifests.

SpeechStew (Chan et al., 2021) mixes seven corpora. LibriSpeech, Common Voice and TED-LIUM are read
in their official layouts. Of the others each site has another version, segmentation and mapping of
words, and recipes that fit it; what those make goes into manifests (see `manifest`). A line is

    {"audio": "...", "offset": 1.5, "duration": 3.2, "text": "...", "language": "en", "id": "..."}
"""

from __future__ import annotations

from maestro_jax.data.corpora.manifest import Manifest

_FROM_LHOTSE = (
    "`lhotse prepare {name}` gives recordings and supervisions: write a line of each supervision, "
    "with its recording's path as audio, start as offset, and language en."
)


def ami() -> Manifest:
    """Meetings; the test set is recorded by headsets, and again by a distant microphone."""
    return Manifest(
        "ami",
        "AMI as manifests: train.jsonl, validation.jsonl, test.jsonl (headsets), "
        "test_distant.jsonl (one distant microphone)",
        recipe=_FROM_LHOTSE.format(name="ami --mic ihm") + " Use --mic sdm for test_distant.",
        more_splits=("test_distant",),
    )


def broadcast_news() -> Manifest:
    """English Broadcast News (Hub4, LDC97S44)."""
    return Manifest(
        "broadcast_news",
        "English Broadcast News as manifests: train.jsonl, and validation.jsonl, test.jsonl",
        recipe=_FROM_LHOTSE.format(name="broadcast-news"),
    )


def switchboard_fisher() -> Manifest:
    """Telephone calls; the test set is Hub5'00, its Switchboard and its CallHome part."""
    return Manifest(
        "switchboard_fisher",
        "Switchboard and Fisher as manifests: train.jsonl, validation.jsonl, test.jsonl "
        "(Switchboard of Hub5'00), test_callhome.jsonl",
        recipe=_FROM_LHOTSE.format(name="switchboard")
        + " So do fisher-english and eval2000. Each side of a call needs a file of its own: the "
        "channels of a file are averaged.",
        more_splits=("test_callhome",),
    )


def wsj() -> Manifest:
    """Read newspapers: si284 for training, dev93, eval92."""
    return Manifest(
        "wsj",
        "WSJ as manifests: train.jsonl (si284), validation.jsonl (dev93), test.jsonl (eval92)",
        recipe="Kaldi's wsj_data_prep.sh gives text and wav.scp: write a line of each utterance, "
        "with the path of its file (by `sph2pipe -p -f wav`) as audio, and language en.",
    )
