"""What runs on the hardware; imports neither CDK nor config nor stacks."""
