"""Recordings in other layouts, written as datasets."""
