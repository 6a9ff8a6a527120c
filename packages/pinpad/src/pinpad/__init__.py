"""DreamerV3-style world models on PinPad and their temporal boundaries."""
