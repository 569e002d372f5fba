"""Plays HyperPod clusters: nodes, lifecycle scripts, Slurm, the file system that nodes share."""
