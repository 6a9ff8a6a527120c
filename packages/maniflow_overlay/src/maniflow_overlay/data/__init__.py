"""Readers and writers of the real formats, a generator that writes them, and the frame store."""
