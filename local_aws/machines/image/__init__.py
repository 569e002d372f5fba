"""What is inside a machine: copied to its `sbin` and run there, so it imports only itself."""
