"""What innovations share: what a model is, weights, engines, the server, a node's scripts."""
