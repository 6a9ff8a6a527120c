"""Readers of the OPV2V tree, its cache and sampler, and a generator that writes the same tree."""
