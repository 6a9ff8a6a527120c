"""Memory bank v1: what the teacher answers on each window of a data set, kept on disk."""
