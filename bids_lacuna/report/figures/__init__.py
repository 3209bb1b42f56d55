"""Pictures for the reports, their numbers and tables: nilearn and matplotlib, which take 200 MB, are loaded here."""

from bids_lacuna.report.figures.charts import draw_distributions, draw_similarity
from bids_lacuna.report.figures.mosaic import (
    draw_binary_map,
    draw_glass_brain,
    draw_lesion,
    draw_map,
    draw_share,
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
    strongest_share_threshold,
)

__all__ = [
    "Cluster",
    "LesionShape",
    "MapFacts",
    "Volume",
    "draw_binary_map",
    "draw_distributions",
    "draw_glass_brain",
    "draw_lesion",
    "draw_map",
    "draw_share",
    "draw_similarity",
    "draw_tiles",
    "find_clusters",
    "measure_map",
    "read_lesion",
    "read_map",
    "strongest_share_threshold",
    "write_viewer",
]
