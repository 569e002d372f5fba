"""Attention over a sliding window."""
