"""Maps and lesions by the regions of an atlas."""
