"""The maps of one lesion, made from given statistics."""

from __future__ import annotations

import numpy as np
import pytest

from bids_lacuna.grid import Grid
from bids_lacuna.mapping.maps import NetworkMaps
from bids_lacuna.provenance import MappingOptions
from bids_lacuna.statistics import LesionStatistics

ABOVE = np.nextafter(np.float32(3), np.float32(4))

T = np.array([3, ABOVE, -3, -ABOVE, 0, np.nan, 5, -5, 7, -7, np.inf], np.float32)


@pytest.fixture
def maps() -> NetworkMaps:
    """Return maps with the thresholds 3 and 5, on a grid of one column with a voxel outside the mask."""
    mask = np.ones((1, 1, len(T) + 1), bool)
    mask[0, 0, -1] = False
    statistics = LesionStatistics(T / 10, T, np.full(len(T), 13, np.int32))
    options = MappingOptions(t_thresholds=(3.0, 5.0))
    return NetworkMaps(lambda: statistics, Grid(mask, np.eye(4)), "MNI152NLin6Asym", options, n_varies=False)


def test_a_t_at_the_threshold_is_not_above_it(maps: NetworkMaps) -> None:
    """A binary map is 1 where |t| is above the threshold, and 0 where it equals it or is undefined."""
    above = {3.0: [0, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1], 5.0: [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]}
    assert maps["binary_maps"].keys() == above.keys()
    for threshold, expected in above.items():
        np.testing.assert_array_equal(maps["binary_maps"][threshold].get_fdata().ravel(), [*expected, 0])
    np.testing.assert_array_equal(maps["binary_map"].get_fdata().ravel(), [*above[3.0], 0])


def test_voxels_above_a_threshold_are_those_of_its_map(maps: NetworkMaps) -> None:
    """The summary counts, for each threshold, the voxels that are 1 in the binary map."""
    counts = maps["summary_statistics"]["n_voxels_above_threshold"]
    assert counts == {3.0: 7, 5.0: 3}
    assert counts == {t: np.count_nonzero(image.get_fdata()) for t, image in maps["binary_maps"].items()}


def test_statistics_are_computed_once_where_that_is_requested() -> None:
    """All maps read in the block share one computation; before and after it, each map is computed anew."""
    computed = []

    def compute() -> LesionStatistics:
        computed.append(len(computed))
        return LesionStatistics(T / 10, T, np.full(len(T), 13, np.int32))

    grid = Grid(np.ones((1, 1, len(T)), bool), np.eye(4))
    maps = NetworkMaps(compute, grid, "MNI152NLin6Asym", MappingOptions(t_thresholds=(3.0,)), n_varies=True)
    with maps.computed_once() as statistics:
        assert statistics.n_subjects == 13
        for key in maps:
            maps[key]
        assert computed == [0]
    np.testing.assert_array_equal(maps["t_map"].get_fdata().ravel(), T)
    assert computed == [0, 1]
    with maps.computed_once():
        maps.keep()
    maps["t_map"]
    assert computed == [0, 1, 2]
    maps.release()
    with pytest.raises(RuntimeError, match="released"), maps.computed_once():
        pass


def test_each_map_has_its_own_header(maps: NetworkMaps) -> None:
    """A header that a user changes is that of no other map, and each map has the dtype of its values."""
    maps["z_map"].header["descrip"] = "mine"
    again = maps["z_map"]
    assert again.header["descrip"].item() == b""
    assert again.get_data_dtype() == np.float32
    assert maps["binary_map"].get_data_dtype() == np.uint8
