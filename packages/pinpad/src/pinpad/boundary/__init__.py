"""Temporal boundaries: who detects them, how well, and whether that could be chance."""
