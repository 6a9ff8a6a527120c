"""What the two scenes paint alike, as RGB in 0 to 1."""

TABLE = (0.62, 0.58, 0.52)
BLOCK = (0.15, 0.35, 0.65)
MARKED_BLOCK = (0.85, 0.55, 0.1)
GOAL = (0.95, 0.75, 0.35)
HAND = (0.25, 0.25, 0.28)
FINGER = (0.9, 0.9, 0.92)
CURTAIN = (0.45, 0.3, 0.4)
