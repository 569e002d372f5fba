"""What all tests share: who goes first, how patient generated tests are, what clients have read."""

import functools

import botocore.session
import httpx._transports.default
import pytest
from hypothesis import HealthCheck, settings

# A file goes to one worker whole. One that takes long must not be the last: the other would idle.
LONGEST = (
    "e2e/test_first_light.py",
    "e2e/test_latent_cache.py",
    "e2e/test_moe.py",
    "e2e/test_sliding_window.py",
    "with_torch/test_vllm.py",
    "with_torch/test_moe_eks.py",
    "with_torch/test_moe_kills.py",
    "with_torch/test_gemma.py",
    "with_torch/test_moe_ranks.py",
    "with_torch/test_kernels.py",
    "with_torch/test_decoder.py",
    "with_torch/test_mla_faults.py",
    "with_torch/test_native.py",
    "with_torch/test_mla_serve.py",
    "local_aws/test_cluster_jobs.py",
    "stacks/test_sagemaker_sdk.py",
    "model_code/test_boot.py",
    "constructs_lib/test_function_code.py",
    "stacks/test_gates.py",
    "model_code/test_serve.py",
    "model_code/test_lifecycle.py",
    "stacks/test_mla.py",
    "stacks/test_moe_serving_settings.py",
    "stacks/test_moe_training.py",
    "stacks/test_moe_training_eks.py",
    "local_aws/test_rolling.py",
    "local_aws/test_machines.py",
    "local_aws/test_functions.py",
    "local_aws/test_endpoints.py",
    "local_aws/test_contract.py",
    "local_aws/test_listener_rules.py",
    "isomorph/test_commands.py",
    "isomorph/test_fleets.py",
    "stacks/test_app.py",
    "stacks/test_shipped.py",
)

# A machine that is busy is no reason to fail.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# Each session of boto3 reads the descriptions of its services, megabytes of JSON; tests make many.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)

# Each request of httpx outside a client reads the certificates of all authorities, which takes ten
# times as long as the rest; tests ask in loops.
httpx._transports.default.create_ssl_context = functools.cache(
    httpx._transports.default.create_ssl_context
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the order within a file stays."""

    def place(item: pytest.Item) -> int:
        name = "/".join(item.path.parts[-2:])
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)
