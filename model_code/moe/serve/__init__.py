"""The server of a mixture of experts, on a pool's nodes and in SageMaker's container."""
