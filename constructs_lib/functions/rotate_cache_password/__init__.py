"""Rotates the password of a latent cache."""
