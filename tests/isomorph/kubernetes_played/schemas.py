"""Objects held to the models that Kubernetes' and Kubeflow's Python clients ship.

Every key must be one that `kubeflow.training` 1.9 (PyTorchJob) or `kubernetes` 35 knows, with a
value of its type; what is required must be there.
"""

import re
from typing import Any

MODELS = {
    "Namespace": "V1Namespace", "ServiceAccount": "V1ServiceAccount", "Role": "V1Role",
    "RoleBinding": "V1RoleBinding", "PersistentVolume": "V1PersistentVolume",
    "PersistentVolumeClaim": "V1PersistentVolumeClaim", "PyTorchJob": "KubeflowOrgV1PyTorchJob",
    "Pod": "V1Pod",
}  # fmt: skip
SIMPLE = {"str": str, "int": int, "bool": bool, "object": object, "float": float}
_SUBJECT = {"V1Subject": "RbacV1Subject"}  # as the client names it since 1.29


def model(name: str) -> Any:
    # Here: tests that only stand in the same file need not wait for a thousand modules.
    import kubeflow.training.models as kubeflow
    import kubernetes.client.models as kubernetes

    found = getattr(kubeflow, name, None) or getattr(kubernetes, name, None)
    return found or getattr(kubernetes, _SUBJECT.get(name, name))


def check(kind: str, value: Any, where: str) -> None:
    """Hold a value to a type of the clients' models."""
    if listed := re.fullmatch(r"list\[(.*)\]", kind):
        assert isinstance(value, list), where
        for number, each in enumerate(value):
            check(listed[1], each, f"{where}[{number}]")
    elif mapped := re.fullmatch(r"dict\(str, (.*)\)", kind):
        assert isinstance(value, dict), where
        for key, each in value.items():
            check(mapped[1], each, f"{where}.{key}")
    elif kind in SIMPLE:
        assert isinstance(value, SIMPLE[kind]), f"{where} is {value!r}, {kind} is wanted"
    elif kind == "datetime":
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value), where
    else:
        known = model(kind)
        names = {wire: own for own, wire in known.attribute_map.items()}
        for key, each in value.items():
            assert key in names, f"{where}.{key} is unknown to {kind}"
            check(known.openapi_types[names[key]], each, f"{where}.{key}")
        # The constructors refuse None where a field is required.
        known(**{own: value.get(wire) for wire, own in names.items()})


def check_object(value: dict[str, Any]) -> None:
    """Hold a whole object to the model of its kind, and to what the operator's webhook refuses."""
    kind = str(value["kind"])
    if kind not in MODELS:  # Kueue's, whose models no package ships
        return
    check(MODELS[kind], value, kind)
    if kind == "PyTorchJob":
        worker = value["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
        check("V1PodSpec", worker, "pod")
        # pkg/webhooks/pytorch/pytorchjob_webhook.go of the training operator
        elastic = value["spec"].get("elasticPolicy", {})
        both = "nProcPerNode" in elastic and "nprocPerNode" in value["spec"]
        assert not both, "spec.elasticPolicy.nProcPerNode must not be used with spec.nprocPerNode"
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", value["metadata"]["name"]), "name"
