"""Measurements, each beside a named peer or limit in one run."""

BENCHES = {}
