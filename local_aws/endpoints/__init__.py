"""Plays SageMaker's endpoints: containers of deployed models as processes."""
