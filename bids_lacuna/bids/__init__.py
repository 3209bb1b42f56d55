"""What BIDS datasets hold."""
