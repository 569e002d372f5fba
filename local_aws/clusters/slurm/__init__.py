"""Slurm, as far as a training job meets it, where Debian's is not installed. Standard library only.

`slurmctld` and `slurmd` are services of the nodes; sbatch, squeue, scancel, srun, scontrol and
sinfo are their commands. They meet in one folder that all nodes of a cluster share, where Slurm's
daemons would talk over the network. What is not played is refused by name. `real.py` is for where
Debian's is: it holds the real daemons on a node.
"""
