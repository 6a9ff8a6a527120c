"""A small world with streets that is ray-cast into a tree of OPV2V files."""
