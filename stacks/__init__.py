"""The stacks: one file an innovation, the foundation, and the registry of all of them."""
