"""Where norms stand: around the parts of a layer, and on queries and keys."""
