"""Writers of MATLAB files: version 7 by SciPy, version 7.3 by h5py."""

from __future__ import annotations

import uuid
from pathlib import Path

import h5py
import numpy as np
from scipy.io import savemat


def write_mat(path: Path, variables: dict[str, object], version: str) -> None:
    """Write a MATLAB file of version v7 or v7.3; dicts are structs, lists are cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if version == "v7":
        savemat(path, {name: as_scipy(value) for name, value in variables.items()}, do_compression=True)
        return
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            write_hdf5(file, name, value)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def as_scipy(value: object) -> object:
    """Convert lists to object arrays, which savemat writes as cells."""
    if isinstance(value, dict):
        return {name: as_scipy(field) for name, field in value.items()}
    if isinstance(value, list):
        cell = np.empty((1, len(value)), object)
        cell[0] = [as_scipy(element) for element in value]
        return cell
    return value


def write_hdf5(group: h5py.Group, name: str, value: object) -> None:
    """Write one value as MATLAB 7.3 does: arrays transposed, text as uint16, cells as references."""
    if isinstance(value, dict):
        kind, stored = b"struct", group.create_group(name)
        for field, content in value.items():
            write_hdf5(stored, field, content)
    elif isinstance(value, list) and value:
        elements = group.file.require_group("#refs#")
        names = [uuid.uuid4().hex for _ in value]
        for element_name, element in zip(names, value, strict=True):
            write_hdf5(elements, element_name, element)
        references = np.array([[elements[element_name].ref] for element_name in names], h5py.ref_dtype)
        kind, stored = b"cell", group.create_dataset(name, data=references)
    elif isinstance(value, str):
        kind = b"char"
        stored = group.create_dataset(name, data=np.array([[ord(letter)] for letter in value], np.uint16))
        stored.attrs["MATLAB_int_decode"] = np.int32(2)
    elif isinstance(value, list):
        kind, stored = b"cell", group.create_dataset(name, data=np.zeros(2, np.uint64))
        stored.attrs["MATLAB_empty"] = np.uint8(1)
    else:
        array = np.atleast_2d(np.asarray(value))
        kind = {"float32": b"single", "float64": b"double"}.get(array.dtype.name, array.dtype.name.encode())
        stored = group.create_dataset(name, data=array.T, compression="gzip")
    stored.attrs["MATLAB_class"] = np.bytes_(kind)
