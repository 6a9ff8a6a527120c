"""Recorded episodes and traces: how they are read, written and made."""
