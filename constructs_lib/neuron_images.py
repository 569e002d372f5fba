"""Containers for Inferentia and Trainium. The SageMaker SDK's own table is behind, so this is ours.

What is not here does not fit: vLLM's Neuron plugin from 0.21 on serves Trainium2 and later alone.
Repositories and tags as listed for Neuron SDK 2.31 in November 2026; none was pulled.
"""

from dataclasses import dataclass

from aws_cdk import ArnFormat, Stack
from constructs import Construct

# The owner in the regions that sell Inf2 or Trn2, but for one; as the registries of Neuron's images
# in sagemaker-core 2.27.0 (sagemaker/core/image_uri_config/huggingface-neuronx.json) say.
_OWNER, _OTHERS = "763104351884", {"ap-south-2": "772153158452"}


@dataclass(frozen=True, kw_only=True)
class NeuronImage:
    """One image.

    Args:
        repository: Its name in the registry.
        tag: Framework, Python, Neuron SDK and system.
        serves: Families of SageMaker instances that it runs on.
        python: Its Python.
    """

    repository: str
    tag: str
    serves: tuple[str, ...]
    python: str

    def uri(self, scope: Construct) -> str:
        """Return the image in the region of a stack."""
        stack = Stack.of(scope)
        return f"{self._owner(stack)}.dkr.ecr.{stack.region}.{stack.url_suffix}/{self._tagged}"

    @property
    def _tagged(self) -> str:
        return f"{self.repository}:{self.tag}"

    def repository_arn(self, scope: Construct) -> str:
        """Return the repository in the region of a stack."""
        stack = Stack.of(scope)
        return stack.format_arn(
            service="ecr",
            account=self._owner(stack),
            resource="repository",
            resource_name=self.repository,
            arn_format=ArnFormat.SLASH_RESOURCE_NAME,
        )

    def _owner(self, stack: Stack) -> str:
        return _OTHERS.get(stack.region, _OWNER)


INFERENCE = NeuronImage(
    repository="pytorch-inference-neuronx",
    tag="2.9.0-neuronx-py312-sdk2.31.1-ubuntu24.04",
    serves=("inf2", "trn1", "trn2"),
    python="3.12",
)
TRAINING = NeuronImage(
    repository="pytorch-training-neuronx",
    tag="2.9.0-neuronx-py312-sdk2.30.0-ubuntu24.04",
    serves=("trn1", "trn2"),
    python="3.12",
)
NEURON_IMAGES = (INFERENCE, TRAINING)
