"""Transforms from a lesion's space to the connectome's: chains of files, and their application to a mask.

Importing this package imports no SimpleITK: `transforms.resampling` does, where a transform is applied.
"""

from bids_lacuna.transforms.chain import TransformChain, TransformFile, check_format, describe_steps

__all__ = ["TransformChain", "TransformFile", "check_format", "describe_steps"]
