"""Lesion network mapping of many lesions in one pass over a normative connectome, with constant memory."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bids_lacuna._version import __version__
from bids_lacuna.runtime.numba_cache import choose_folder, ensure_home, keep_in

if TYPE_CHECKING:
    from bids_lacuna.batch import batch_process
    from bids_lacuna.connectome import Connectome
    from bids_lacuna.group import group_test
    from bids_lacuna.lesion import LesionData
    from bids_lacuna.mapping import FunctionalNetworkMapping, Summary
    from bids_lacuna.mapping.null_maps import null_lesions
    from bids_lacuna.parcels import parcellate

__all__ = [
    "Connectome",
    "FunctionalNetworkMapping",
    "LesionData",
    "Summary",
    "__version__",
    "batch_process",
    "group_test",
    "null_lesions",
    "parcellate",
]

_HOMES = {
    "Connectome": "connectome",
    "FunctionalNetworkMapping": "mapping",
    "LesionData": "lesion",
    "Summary": "mapping",
    "batch_process": "batch",
    "group_test": "group",
    "null_lesions": "mapping.null_maps",
    "parcellate": "parcels",
}


def __getattr__(name: str) -> Any:
    # `--help` and `--version` take a tenth of the time if numba and scipy are imported only when needed.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Without this, threads that wait after a kernel occupy the processor that the reading thread needs: on a machine of
# two processors, a small kernel took 16 ms instead of 0.02 ms.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# numba reads it once, when it is imported.
if "NUMBA_CACHE_DIR" not in os.environ:
    keep_in(choose_folder())

ensure_home()
