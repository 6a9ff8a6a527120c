"""Closed loop: who acts, in which conditions, how often it works, and how sure that is."""
