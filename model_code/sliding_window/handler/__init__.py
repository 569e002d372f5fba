"""The deployable target for AWS Lambda: one request at a time, no state between them."""
