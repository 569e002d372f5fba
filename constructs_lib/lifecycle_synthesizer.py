"""Sends the assets of a stack to the lifecycle bucket."""

from aws_cdk import DefaultStackSynthesizer, IBoundStackSynthesizer, Stack


class LifecycleSynthesizer(DefaultStackSynthesizer):
    """The CDK's own synthesizer with another bucket, for one stack.

    Args:
        bucket: Name of the lifecycle bucket, which another stack makes.
    """

    def __init__(self, bucket: str) -> None:
        super().__init__(file_assets_bucket_name=bucket)

    def reusable_bind(self, stack: Stack) -> IBoundStackSynthesizer:
        """Bind this very object.

        The inherited method binds a copy of it that jsii takes for the original, so a file that
        Python adds to the stack's synthesizer would come to one that no stack is bound to.
        """
        self.bind(stack)
        return self
