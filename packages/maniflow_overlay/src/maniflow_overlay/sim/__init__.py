"""A tabletop to act on: two scenes with one interface, and the expert that can do the task."""
