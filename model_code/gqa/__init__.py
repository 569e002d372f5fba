"""Grouped-query attention on CPU fleets."""
