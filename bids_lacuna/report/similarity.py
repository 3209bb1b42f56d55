"""What a page says of a map's similarity to its connectome as a whole, and to target networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bids_lacuna.derivatives import SIMILARITY, TARGETS

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


@dataclass(frozen=True)
class ShownTarget:
    """The relation of a lesion to a target network; None where it is undefined or not known."""

    name: str
    file: str
    r: float | None
    r_outside: float | None
    r_percentile: float | None
    damage: float | None
    damage_percentile: float | None


def read_targets(sidecar: Mapping[str, Any]) -> list[ShownTarget]:
    """Return what an r-map's sidecar has of target networks, sorted by name."""
    recorded = sidecar.get(TARGETS)
    found = []
    for name, entry in sorted(recorded.items()) if isinstance(recorded, Mapping) else ():
        if isinstance(entry, Mapping):
            nulls = entry.get("NullLesions")
            nulls = nulls if isinstance(nulls, Mapping) else {}
            numbers = [entry.get(key) for key in ("R", "ROutsideLesion")]
            numbers += [nulls.get("RPercentile"), entry.get("DamageScore"), nulls.get("DamageScorePercentile")]
            known = [float(number) if isinstance(number, int | float) else None for number in numbers]
            found.append(ShownTarget(name, str(entry.get("File", "")), *known))
    return found
