"""Maps and lesions by the regions of an atlas."""

from bids_lacuna.parcels.parcellation import Parcellation, parcellate

__all__ = ["Parcellation", "parcellate"]
