"""From a model and its load to a sized, priced and explained AWS plan. Pure functions, offline."""
