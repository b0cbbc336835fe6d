"""Where a run is shown while it goes and kept when it is over; see `tracker.py` for the contract."""
