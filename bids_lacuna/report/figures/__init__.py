"""The pictures and numbers of the reports.

Charts are not imported here: only a group's page has them, and matplotlib takes half a second and 60 MB.
"""

from bids_lacuna.report.figures.clusters import Cluster, find_clusters, find_clusters_beyond
from bids_lacuna.report.figures.colours import Scale, two_colour_scale, two_sided_scale
from bids_lacuna.report.figures.mosaic import Row, draw_lesion, draw_map, draw_overlap, draw_tiles, draw_views
from bids_lacuna.report.figures.viewer import write_viewer
from bids_lacuna.report.figures.volumes import (
    LesionShape,
    MapFacts,
    Volume,
    fractions_beyond,
    measure_map,
    read_lesion,
    read_map,
    strongest_tenth_threshold,
)

__all__ = [
    "Cluster",
    "LesionShape",
    "MapFacts",
    "Row",
    "Scale",
    "Volume",
    "draw_lesion",
    "draw_map",
    "draw_overlap",
    "draw_tiles",
    "draw_views",
    "find_clusters",
    "find_clusters_beyond",
    "fractions_beyond",
    "measure_map",
    "read_lesion",
    "read_map",
    "strongest_tenth_threshold",
    "two_colour_scale",
    "two_sided_scale",
    "write_viewer",
]
