"""Sliding-window attention: most layers see a window of the sequence, and keep no more of it."""
