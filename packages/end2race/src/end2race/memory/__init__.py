"""Memory bank v2: what the teacher did in similar situations, found by similarity."""
