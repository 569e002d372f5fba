"""The HTTP server of the fleets: OpenAI-compatible, over any engine."""
