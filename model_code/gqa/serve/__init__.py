"""The deployable target: an OpenAI-compatible server."""
