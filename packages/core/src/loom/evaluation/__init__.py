"""Scores of pictures and statistics of scores: what every thread's numbers are made with."""
