"""Paths drawn into pictures."""
