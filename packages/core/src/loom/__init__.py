"""Loom's core: runs, records, checkpoints, gates, native builds, jobs and evaluation."""
