"""The embedded AWS: a control plane in one process, and the machines that its groups want."""
