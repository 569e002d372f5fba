"""Which quota each group of machines counts against, named exactly as Service Quotas names it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from planner.catalogue import instances
from planner.doctor.findings import Group

_EC2 = {
    "p": "Running On-Demand P instances",
    "inf": "Running On-Demand Inf instances",
    "trn": "Running On-Demand Trn instances",
}
_STANDARD = "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances"
_SAGEMAKER = {
    "hyperpod": "{} for cluster usage",
    "endpoint": "{} for endpoint usage",
    "training": "{} for training job usage",
}


@dataclass(frozen=True, kw_only=True)
class Quota:
    """A quota and how much of it is needed: vCPUs for EC2, machines for SageMaker."""

    service_code: str
    name: str
    needed: int


def quotas(groups: Iterable[Group]) -> list[Quota]:
    """Return the quotas that the groups need, those of one name added up."""
    needed: defaultdict[tuple[str, str], int] = defaultdict(int)
    for group in groups:
        instance = instances().get(group.instance)
        if instance is None:
            continue
        if group.service == "ec2":
            kind = next((k for k in ("inf", "trn", "p") if instance.family.startswith(k)), "")
            needed["ec2", _EC2.get(kind, _STANDARD)] += group.count * instance.vcpus
        else:
            name = _SAGEMAKER[group.service].format(f"ml.{instance.name}")
            needed["sagemaker", name] += group.count
    return [
        Quota(service_code=code, name=name, needed=count) for (code, name), count in needed.items()
    ]
