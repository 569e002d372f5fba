"""What bounds several constructs, or an environment's settings. Without the CDK."""

MOST_POOLS = 40  # of a front door: two rules each; a listener has 100 besides its default
PRIVATE_MASK = 19  # of a private subnet: 8,192 addresses in each zone
