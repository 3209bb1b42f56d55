"""What a page says of a map's similarity to its connectome as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bids_lacuna.derivatives import SIMILARITY

NAMES = {
    "Degree": "Degree",
    "AbsoluteDegree": "Absolute degree",
    "PC1": "Principal component 1",
    "PC2": "Principal component 2",
    "PC3": "Principal component 3",
}
"""Names of the maps of the connectome, by their keys in sidecars."""


@dataclass(frozen=True)
class ShownSimilarity:
    """The chart of a map's similarity."""

    bars: tuple[tuple[str, float], ...]
    """Name and spatial r of each map of the connectome."""
    explained: float | None
    """Fraction of the map's variance that they explain together."""


def read_similarity(sidecar: Mapping[str, Any]) -> ShownSimilarity | None:
    """Return what an r-map's sidecar has of its similarity; None if it has nothing."""
    recorded = sidecar.get(SIMILARITY)
    if not isinstance(recorded, Mapping):
        return None
    bars = tuple(
        (name, float(recorded[key])) for key, name in NAMES.items() if isinstance(recorded.get(key), int | float)
    )
    explained = recorded.get("RSquared")
    return ShownSimilarity(bars, float(explained) if isinstance(explained, int | float) else None) if bars else None
