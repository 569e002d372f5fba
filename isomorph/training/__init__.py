"""Jobs on a deployed training cluster."""
