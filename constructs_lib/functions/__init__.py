"""Code of Lambda functions that constructs deploy. It imports nothing of ours."""
