"""The parts of SpeechStew that are of no other file, as seqio tasks: `tedlium_paired_en`.

All are English and transcribed. AMI and Switchboard are tested twice, as tables of SpeechStew show
them: by the splits `test` (headsets; Switchboard) and `test_distant` or `test_callhome`.
"""

from __future__ import annotations

from maestro_jax.tasks.corpus_tasks import SPLITS, add_corpus_task

SPEECHSTEW = {
    "tedlium": SPLITS,
    "ami": (*SPLITS, "test_distant"),
    "broadcast_news": SPLITS,
    "switchboard_fisher": (*SPLITS, "test_callhome"),
    "wsj": SPLITS,
}

for _corpus, _splits in SPEECHSTEW.items():
    add_corpus_task(_corpus, "en", stream="paired", language="en", splits=_splits)
