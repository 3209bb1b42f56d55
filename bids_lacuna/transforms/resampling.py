"""Masks through chains of ITK transforms: their weights on the connectome's grid.

ITK's points are millimetres to the left, posterior and superior (LPS); NIfTI's affines give right, anterior and
superior. A transform maps points of the target space to points of the source space (see `chain`), so that a mask is
read at the point to which the whole chain maps a point of the connectome. Each grid voxel is cut into pieces; its
weight is the mean of the mask at their centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from threading import Lock

import h5py
import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813  its own documentation's name
from scipy import ndimage

from bids_lacuna.grid import Grid
from bids_lacuna.images import check_content, open_image
from bids_lacuna.transforms.chain import TransformChain

Array = np.ndarray

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

PIECE_MM = 0.5
"""Largest width of the pieces of a grid voxel, in the connectome's space."""

BORDER_PIECE_MM = 0.25
"""Largest width of the pieces of voxels on the mask's border."""

MARGIN_MM = 10.0
"""Voxels whose centres the chain maps this close to the mask's box, and a voxel's diagonal, may hold some of it."""

AROUND_MM = 20.0
"""Distance around the grid's volume in which the lesion is looked for, so that its coverage is known."""

BLOCK = 6
"""Edge, in grid voxels, of the blocks that are cut into finer pieces at a time."""

FACES = ndimage.generate_binary_structure(3, 1)
"""A voxel and the six that share a face with it."""

_one_at_a_time = Lock()
"""A field of 1 mm takes 200 MB; the threads of one lesion use all processors."""


def use_threads(n_threads: int) -> None:
    """Let SimpleITK use so many threads in this process, and not one for each processor of the machine."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(n_threads)


def weigh_through(chain: TransformChain, lesion: Array, affine: Array, grid: Grid) -> tuple[Array, Array, float]:
    """Compute the fraction of each grid voxel that a lesion covers after a chain of transforms.

    Parameters
    ----------
    chain
        Transforms from the lesion's space to the grid's.
    lesion : shape (x, y, z), boolean, or real numbers from 0 to 1
    affine : shape (4, 4)
        Affine from the lesion's voxel indices to positions in mm; it may be sheared.
    grid
        Grid of the connectome; its brain mask is not applied.

    Returns
    -------
    corner : shape (3,)
        Indices of the box's first voxel in the grid.
    weights : shape (x, y, z), float64
        Weights of a box of grid voxels; the lesion covers none outside it.
    volume_mm3
        Volume of the lesion in the grid's space, also around the grid.

    Raises
    ------
    ValueError
        A file holds no transform that ITK can read.
    """
    with _one_at_a_time:
        around = np.ceil(AROUND_MM / grid.voxel_sizes_mm).astype(int)
        to_mask = _compose(chain, affine, grid.affine)
        mask = _as_image(lesion)
        corner, shape = _find_box(to_mask, lesion.shape, affine, grid, around)
        if not shape.all():
            return np.zeros(3, int), np.zeros((0, 0, 0)), 0.0
        edges = nib.affines.voxel_sizes(affine)
        n_pieces = _count_pieces(grid, min(PIECE_MM, edges.min() / 2))
        weights = _resample(mask, to_mask, corner, shape, n_pieces)
        finer = np.maximum(_count_pieces(grid, BORDER_PIECE_MM), n_pieces)
        if (finer > n_pieces).any():
            for block in _find_border(weights):
                start, size = (np.array([[side.start, side.stop - side.start] for side in block])).T
                weights[block] = _resample(mask, to_mask, corner + start, size, finer)
    volume_mm3 = float(weights.sum() * grid.voxel_volume_mm3)
    first, end = np.maximum(corner, 0), np.minimum(corner + shape, grid.shape)
    inside = tuple(slice(a, max(a, b)) for a, b in zip(first - corner, end - corner, strict=True))
    return first, weights[inside], volume_mm3


def average_through(chain: TransformChain, values: Array, affine: Array, grid: Grid) -> Array:
    """Average a map over each grid voxel after a chain of transforms, by linear interpolation.

    Parameters
    ----------
    chain
        Transforms from the map's space to the grid's.
    values : shape (x, y, z)
        The map; it counts as 0 outside its volume.
    affine : shape (4, 4)
        Affine from the map's voxel indices to positions in mm.
    grid
        Grid of the connectome; its brain mask is not applied.

    Returns
    -------
    shape (x, y, z), float64

    Raises
    ------
    ValueError
        A file holds no transform that ITK can read.
    """
    with _one_at_a_time:
        to_map, image = _compose(chain, affine, grid.affine), _as_image(values)
        n_pieces = _count_pieces(grid, nib.affines.voxel_sizes(affine).min())
        means = np.zeros(grid.shape)
        # The pieces of a whole volume of 2 mm would take 64 times its memory from a map of 0.5 mm.
        for start in range(0, grid.shape[2], BLOCK):
            part = means[:, :, start : start + BLOCK]
            part[:] = _resample(image, to_map, np.array([0, 0, start]), np.array(part.shape), n_pieces)
    return means


def _find_border(weights: Array) -> list[tuple[slice, ...]]:
    """Return small boxes that hold all voxels on a lesion's border: those partly covered, and their neighbours."""
    border = ndimage.maximum_filter(weights, footprint=FACES) > 0
    border &= ndimage.minimum_filter(weights, footprint=FACES) < 1
    boxes = []
    for start in product(*(range(0, n, BLOCK) for n in weights.shape)):
        places = np.argwhere(border[tuple(slice(first, first + BLOCK) for first in start)])
        if len(places):
            low, high = places.min(axis=0) + start, places.max(axis=0) + start + 1
            boxes.append(tuple(map(slice, low.tolist(), high.tolist())))
    return boxes


def read_transform(path: Path) -> sitk.Transform:
    """Read a transform: a file of ITK's, or a displacement field in NIfTI.

    Raises
    ------
    ValueError
        ITK cannot read it, or it is no transform of three dimensions with finite numbers.
    OSError
        The file is truncated or damaged, which ITK may not notice.
    """
    is_image = path.name.lower().endswith((".nii", ".nii.gz"))
    finite = True
    if is_image:
        check_content(path, "transform")
        # ITK takes 0 for values of a NIfTI file that are not finite.
        finite = bool(np.isfinite(np.asanyarray(open_image(path, "transform").dataobj).sum(dtype=float)))
    elif path.name.lower().endswith(".h5"):
        _check_hdf5(path)
    try:
        if is_image:
            transform: sitk.Transform = sitk.DisplacementFieldTransform(
                sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
            )
        else:
            transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        what = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"the transform {path} cannot be read by ITK ({what}): check that the file is whole, or make it again"
        ) from error
    if transform.GetDimension() != 3:
        raise ValueError(
            f"the transform {path} is one of {transform.GetDimension()} dimensions, but one of 3 is needed: give the "
            "transform of the whole image"
        )
    if not finite or not all(_is_finite(part) for part in _parts(transform)):
        raise ValueError(f"the transform {path} has values that are not finite: make it again")
    return transform


def _check_hdf5(path: Path) -> None:
    """Raise OSError for a file that HDF5 cannot open: ITK would print its library's error and say little itself."""
    try:
        with h5py.File(path):
            pass
    except OSError as error:
        raise OSError(f"the transform {path} cannot be read as HDF5 ({error}): copy it, or make it again") from error


def _parts(transform: sitk.Transform) -> list[sitk.Transform]:
    """Return the parts of a composite transform."""
    if transform.GetTransformEnum() != sitk.sitkComposite:
        return [transform]
    joined = sitk.CompositeTransform(transform)
    return [
        part for number in range(joined.GetNumberOfTransforms()) for part in _parts(joined.GetNthTransform(number))
    ]


def _is_finite(part: sitk.Transform) -> bool:
    """Return whether all parameters of a transform are finite."""
    if part.GetTransformEnum() == sitk.sitkDisplacementField:
        field = sitk.DisplacementFieldTransform(part).GetDisplacementField()
        # One number that is not finite makes the sum so.
        return bool(np.isfinite(sitk.GetArrayViewFromImage(field).sum()))
    return bool(np.isfinite(part.GetParameters()).all())


class VoxelFinder:
    """Finds the voxels of an image in which points of another space lie; its transforms are read once."""

    def __init__(self, chain: TransformChain | None, affine: Array, shape: tuple[int, ...]) -> None:
        """Read the transforms.

        Parameters
        ----------
        chain
            Transforms from the image's space to that of the points; None if they are in the same space.
        affine : shape (4, 4)
            Affine from the image's voxel indices to positions in mm; it may be sheared.
        shape
            Voxels of the image along each axis.

        Raises
        ------
        ValueError
            A file holds no transform that ITK can read.
        """
        numbers = np.arange(1, prod(shape) + 1, dtype=np.int32).reshape(shape)
        self._shape, self._affine = shape, affine
        self._numbers = sitk.GetImageFromArray(numbers.transpose())
        self._to_image = _compose(chain, affine, np.eye(4))

    def within(self, affine: Array) -> PieceFinder:
        """Prepare to look up the voxels of a volume, given by its affine from voxel indices to positions in mm.

        This copies the transforms: once for each volume, not for each of its blocks.
        """
        to_image = sitk.CompositeTransform([self._to_image, _affine_transform(affine)])
        return PieceFinder(self._numbers, to_image)

    def find_box(self, grid: Grid) -> tuple[Array, Array]:
        """Return the first voxel and the shape of the box of a grid's voxels that the image may reach.

        Voxels are counted from the grid's first one, so that indices around the grid are negative.
        """
        to_image = sitk.CompositeTransform([self._to_image, _affine_transform(grid.affine)])
        around = np.ceil(AROUND_MM / grid.voxel_sizes_mm).astype(int)
        return _find_box(to_image, self._shape, self._affine, grid, around)


@dataclass(frozen=True, eq=False)
class PieceFinder:
    """Finds the voxels of an image in which the pieces of a volume's voxels lie: see `VoxelFinder`."""

    numbers: sitk.Image
    """The index in C order of each voxel of the image, plus 1."""
    to_image: sitk.Transform
    """From the volume's voxel indices to the image's."""

    def find(self, corner: Array, shape: Sequence[int], n_pieces: Array) -> Array:
        """Cut the voxels of a box into pieces, and find the image's voxel at the centre of each.

        Parameters
        ----------
        corner, shape
            First voxel of the box in the volume, and its voxels along each axis.
        n_pieces : shape (3,)
            Pieces of each voxel along each axis.

        Returns
        -------
        shape (n_voxels, pieces of a voxel), int32
            Indices of the image's voxels in C order, -1 outside; the box's voxels are in C order.
        """
        cuts, voxels = n_pieces, np.array(shape)
        if self._linear is not None:
            return self._find_linearly(self._linear, corner, voxels, cuts)
        found = sitk.Resample(
            self.numbers,
            (voxels * cuts).tolist(),
            self.to_image,
            sitk.sitkNearestNeighbor,
            (corner - 0.5 + 0.5 / cuts).tolist(),
            (1 / cuts).tolist(),
        )
        (nz, ny, nx), (kz, ky, kx) = voxels[::-1], cuts[::-1]
        blocks = sitk.GetArrayViewFromImage(found).reshape(nz, kz, ny, ky, nx, kx)
        return blocks.transpose(4, 2, 0, 5, 3, 1).reshape(nx * ny * nz, kx * ky * kz) - 1

    @cached_property
    def _linear(self) -> Array | None:
        """The affine between the voxel indices, shape (4, 4); None if a transform is not linear."""
        if not self.to_image.IsLinear():
            return None
        origin, *ends = (np.array(self.to_image.TransformPoint(point)) for point in np.eye(4)[:, 1:].tolist())
        return nib.affines.from_matvec(np.stack(ends, axis=1) - origin[:, np.newaxis], origin)

    def _find_linearly(self, affine: Array, corner: Array, voxels: Array, cuts: Array) -> Array:
        """Find the voxels by sums over the axes: a tenth of the processor time that ITK takes for each point."""
        shape = self.numbers.GetSize()
        found = np.zeros((*voxels, *cuts), np.int32)
        inside = np.ones(found.shape, bool)
        for row, n in zip(affine, shape, strict=False):
            index = np.full((1,) * 6, row[3] + 0.5)
            for axis, step in enumerate(row[:3]):
                centres = corner[axis] - 0.5 + (np.arange(voxels[axis] * cuts[axis]) + 0.5) / cuts[axis]
                along = np.ones(6, int)
                along[[axis, axis + 3]] = voxels[axis], cuts[axis]
                index = index + step * centres.reshape(along)
            whole = np.floor(index).astype(np.int32)
            inside &= (whole >= 0) & (whole < n)
            found = found * n + whole
        return np.where(inside, found, -1).reshape(prod(voxels.tolist()), -1)


def _compose(chain: TransformChain | None, affine: Array, grid_affine: Array) -> sitk.CompositeTransform:
    """Join all that maps voxel indices of the grid to voxel indices of the mask.

    ITK applies the transform that was added last first: the grid's affine, then the files against the order in which
    the mask passes them, then the inverse of the mask's affine.
    """
    composite = sitk.CompositeTransform(3)
    composite.AddTransform(_affine_transform(np.linalg.inv(TO_LPS @ affine)))
    for file in chain.files if chain else ():
        composite.AddTransform(read_transform(file.path))
    composite.AddTransform(_affine_transform(TO_LPS @ grid_affine))
    return composite


def _affine_transform(affine: Array) -> sitk.AffineTransform:
    return sitk.AffineTransform(affine[:3, :3].ravel().tolist(), affine[:3, 3].tolist())


def _as_image(lesion: Array) -> sitk.Image:
    """Return the lesion as an image whose points are voxel indices, with zeros around it for linear interpolation."""
    values = lesion.astype(np.uint8 if lesion.dtype == bool else np.float32)
    image = sitk.GetImageFromArray(np.pad(values, 1).transpose())
    image.SetOrigin([-1.0, -1.0, -1.0])
    return image


def _find_box(
    to_mask: sitk.Transform, lesion_shape: tuple[int, ...], affine: Array, grid: Grid, around: Array
) -> tuple[Array, Array]:
    """Return the first voxel and the shape of the box of voxels whose centres come close to the mask's box.

    Voxels are counted from the grid's first one, so that indices around the grid are negative.
    """
    margin_mm = MARGIN_MM + np.linalg.norm(grid.voxel_sizes_mm)
    # A sheared voxel is thinner than its edges: the rows of the inverse measure across.
    margin = margin_mm * np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)
    near = sitk.Image([1, 1, 1], sitk.sitkUInt8) + 1
    near.SetSpacing((np.array(lesion_shape) + 2 * margin).tolist())
    near.SetOrigin(((np.array(lesion_shape) - 1) / 2).tolist())
    one = np.ones(3, int)
    hits = np.argwhere(_resample(near, to_mask, -around, grid.shape + 2 * around, one))
    if not len(hits):
        return np.zeros(3, int), np.zeros(3, int)
    low, high = hits.min(axis=0), hits.max(axis=0) + 1
    return low - around, high - low


def _count_pieces(grid: Grid, width_mm: float) -> Array:
    """Return into how many pieces of at most this width a voxel is cut along each axis."""
    return np.ceil(grid.voxel_sizes_mm / width_mm - 1e-6).astype(int)


def _resample(image: sitk.Image, to_mask: sitk.Transform, corner: Array, shape: Array, n_pieces: Array) -> Array:
    """Return the mean of an image over the pieces of each voxel of a box.

    Returns
    -------
    shape `shape`, float64
    """
    is_binary = image.GetPixelID() == sitk.sitkUInt8
    pieces = sitk.Resample(
        image,
        (shape * n_pieces).tolist(),
        to_mask,
        sitk.sitkNearestNeighbor if is_binary else sitk.sitkLinear,
        (corner - 0.5 + 0.5 / n_pieces).tolist(),
        (1 / n_pieces).tolist(),
    )
    # Axes are z, y, x in memory.
    (nz, ny, nx), (kz, ky, kx) = shape[::-1], n_pieces[::-1]
    blocks = sitk.GetArrayViewFromImage(pieces).reshape(nz, kz, ny, ky, nx, kx)
    return blocks.mean(axis=(1, 3, 5), dtype=float).transpose()
