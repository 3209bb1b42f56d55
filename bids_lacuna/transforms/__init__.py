"""Transforms from a lesion's space to the connectome's: chains of files, and their application to a mask.

`transforms.resampling`, which imports SimpleITK, is imported when something first asks for it by that name: SimpleITK
takes time to import, and few runs need it.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from bids_lacuna.transforms.chain import TransformChain, TransformFile, check_format, describe_steps

if TYPE_CHECKING:
    from bids_lacuna.transforms import resampling

__all__ = ["TransformChain", "TransformFile", "check_format", "describe_steps", "resampling"]


def __getattr__(name: str) -> ModuleType:
    """Import `resampling`, of which Python asks here until it is imported."""
    if name != "resampling":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.resampling")
