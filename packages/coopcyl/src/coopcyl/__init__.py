"""Cooperative cylindrical panoramas with metric relative poses and depth."""
