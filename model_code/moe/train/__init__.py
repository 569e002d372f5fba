"""Training of a mixture of experts."""
