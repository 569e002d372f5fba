"""The deployable target of the fleet: an OpenAI-compatible server."""
