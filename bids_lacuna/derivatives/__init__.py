"""The maps as a BIDS derivative dataset."""
