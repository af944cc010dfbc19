"""Ten hours to learn from: the parts in which Libri-Light and MLS publish them.

Both have six folds of ten minutes, which make an hour, and nine hours more. They are splits of
their own; the subsets that papers report on are sums of them.
"""

from __future__ import annotations

FOLDS = tuple(f"train_10min_{fold}" for fold in range(6))
NINE_HOURS = "train_9h"
SPLITS = (*FOLDS, NINE_HOURS)

SUBSETS = {
    "10min": FOLDS[0],
    "1h": "+".join(FOLDS),
    "9h": NINE_HOURS,
    "10h": "+".join(SPLITS),
}
"""The splits of a subset. Of the six folds papers take the first one for their ten minutes."""
