"""The command line: thin commands over config, planner, stacks and the embedded AWS."""
