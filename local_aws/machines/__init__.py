"""Plays EC2 and Auto Scaling: the machines that the deployed groups want run as processes."""
