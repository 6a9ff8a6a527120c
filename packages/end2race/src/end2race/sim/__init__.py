"""A small racing world: tracks, sensors, a car, an expert, and closed loops through them."""
