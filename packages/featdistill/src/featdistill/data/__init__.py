"""Readers and writers of the real formats, and a generator that writes them."""
