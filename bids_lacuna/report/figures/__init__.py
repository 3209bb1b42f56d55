"""The pictures and numbers of the reports. Importing this package loads nilearn and matplotlib, which take 200 MB."""

from bids_lacuna.report.figures.mosaic import (
    draw_binary_map,
    draw_glass_brain,
    draw_lesion,
    draw_map,
    draw_overlap,
    draw_tiles,
)
from bids_lacuna.report.figures.viewer import write_viewer
from bids_lacuna.report.figures.volumes import (
    Cluster,
    LesionShape,
    MapFacts,
    Volume,
    find_clusters,
    measure_map,
    read_lesion,
    read_map,
    strongest_tenth_threshold,
)

__all__ = [
    "Cluster",
    "LesionShape",
    "MapFacts",
    "Volume",
    "draw_binary_map",
    "draw_glass_brain",
    "draw_lesion",
    "draw_map",
    "draw_overlap",
    "draw_tiles",
    "find_clusters",
    "measure_map",
    "read_lesion",
    "read_map",
    "strongest_tenth_threshold",
    "write_viewer",
]
