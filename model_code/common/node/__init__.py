"""What a fleet's machine does besides serving: boot, say that it is ready, drain."""
