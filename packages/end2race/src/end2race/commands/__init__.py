"""The commands, one module for each kind; each has `register(app)`."""
