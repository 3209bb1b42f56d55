"""Lesion network mapping: many lesions, one pass over a normative connectome, constant memory."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bids_lacuna._version import __version__
from bids_lacuna.runtime.numba_cache import choose_folder, keep_in

if TYPE_CHECKING:
    from bids_lacuna.batch import batch_process
    from bids_lacuna.connectome import Connectome
    from bids_lacuna.lesion import LesionData
    from bids_lacuna.mapping import FunctionalNetworkMapping

__all__ = ["Connectome", "FunctionalNetworkMapping", "LesionData", "__version__", "batch_process"]

_HOMES = {
    "Connectome": "connectome",
    "FunctionalNetworkMapping": "mapping",
    "LesionData": "lesion",
    "batch_process": "batch",
}


def __getattr__(name: str) -> Any:
    # `--help` and `--version` answer in a tenth of the time when numba and scipy wait until they are needed.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# After each kernel, waiting threads would otherwise keep the processor that the reading thread needs: on a machine of
# two processors a small kernel took 16 ms so, and 0.02 ms with this.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# numba reads it once, when it is imported, and refuses to import cached kernels where it finds no place for them.
if "NUMBA_CACHE_DIR" not in os.environ:
    keep_in(choose_folder())
