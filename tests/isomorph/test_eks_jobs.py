"""Commands on a training cluster of EKS, against a played Kubernetes API; pods run nothing here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from moto import mock_aws

from isomorph.commands.access import access
from isomorph.commands.logs import logs
from isomorph.commands.start import start
from isomorph.commands.status import status
from isomorph.commands.stop import stop
from isomorph.errors import UserError
from isomorph.training import eks_jobs, eks_log, kubernetes_api, places
from isomorph.training.cluster import TrainingCluster
from isomorph.training.eks_state import row
from isomorph.training.places import Place
from tests.isomorph.kubernetes_played.environment import LUSTRE, OUTPUTS, TEAMS, Caller
from tests.isomorph.kubernetes_played.server import Played
from tests.isomorph.kubernetes_played.store import Store

RESEARCH = "hyperpod-ns-research"
JOB = ("PyTorchJob", "isomorph", "moe-tiny")
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    found = Played(tmp_path_factory.mktemp("played"))
    yield found
    found.close()


@pytest.fixture
def played(server: Played, monkeypatch: pytest.MonkeyPatch) -> Played:
    server.faults.clear()
    server.asked.clear()
    server.store.__init__()  # type: ignore[misc]
    server.log = lambda *_: iter(())
    for module, name, value in (
        (kubernetes_api, "_PAUSE_S", 0.001), (eks_jobs, "PAUSE_S", 0.001),
        (eks_log, "PAUSE_S", 0.01), (eks_jobs, "_SECONDS_TO_GO", 0.05),
        (eks_jobs, "_SECONDS_FOR_KUEUE", 0.01),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    return server


@pytest.fixture(scope="module")
def aws() -> Iterator[None]:
    with mock_aws():
        yield


@pytest.fixture
def caller(aws: None, played: Played, monkeypatch: pytest.MonkeyPatch) -> Caller:
    found = Caller(monkeypatch)
    found.publish()
    found.describe(played)
    return found


@pytest.fixture
def ready(caller: Caller, played: Played) -> Store:
    """The namespace of runs, after an admin has let members in; the caller is a member."""
    caller.key = "ADMINKEY"
    run(access, "moe")
    caller.key = "MEMBERKEY"
    return played.store


@pytest.fixture
def shared(caller: Caller, played: Played) -> Store:
    """Namespaces of two teams with their queues; the caller is of one of them."""
    caller.outputs |= TEAMS
    for team in ("research", "serving"):
        name = f"hyperpod-ns-{team}"
        played.store.create("Namespace", "", NAMESPACE | {"metadata": {"name": name}})
        queue = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "LocalQueue",
                 "metadata": {"name": f"{name}-localqueue", "namespace": name}}  # fmt: skip
        played.store.create("LocalQueue", name, queue)
    caller.key = "ADMINKEY"
    run(access, "moe")
    caller.key = "MEMBERKEY"
    return played.store


def run(command: Any, *words: str) -> str:
    if command is not status:
        words = (*words, "--env", "prod")
    done = CliRunner().invoke(command, words, catch_exceptions=False, standalone_mode=False)
    return str(done.stdout)


def state(store: Store, key: tuple[str, str, str], **conditions: str) -> None:
    listed = [
        {"type": kind, "status": "True", "message": text} for kind, text in conditions.items()
    ]
    store.change(*key, lambda found: found.update(status={"conditions": listed}))


def pod(store: Store, job: tuple[str, str, str] = JOB, **status_: Any) -> None:
    owner = store.get(*job)["metadata"]["uid"]
    container = {"name": "pytorch", "image": "x"}
    metadata = {
        "name": f"{job[2]}-worker-0", "namespace": job[1], "labels": {"app": "isomorph"},
        "ownerReferences": [{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
                             "name": job[2], "uid": owner}],
    }  # fmt: skip
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"containers": [container]}}  # fmt: skip
    store.create("Pod", job[1], made)
    store.change("Pod", job[1], f"{job[2]}-worker-0", lambda found: found.update(status=status_))


def workload(store: Store, name: str = "moe-tiny", **spec: Any) -> None:
    job = store.get("PyTorchJob", RESEARCH, name)
    owner = {"kind": "PyTorchJob", "name": name, "uid": job["metadata"]["uid"]}
    metadata = {"name": f"pytorchjob-{name}-1", "namespace": RESEARCH, "ownerReferences": [owner]}
    store.create("Workload", RESEARCH, {"kind": "Workload", "metadata": metadata, "spec": spec})


def test_a_member_starts_a_run_with_the_rights_that_an_admin_gave(ready, played):
    played.asked.clear()
    said = json.loads(run(start, "moe", "--steps", "7", "--nodes", "2", "--json"))
    assert (said["job"], said["state"], said["nodes"], said["steps"]) == (
        "moe-tiny", "pending", 2, "7",
    )  # fmt: skip
    found = ready.get(*JOB)
    assert found["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 2
    assert played.calls("PATCH") == []  # the volume was there; who runs may not make one
    [line] = run(status, "prod", "moe").splitlines()[1:]
    assert line.split()[:6] == ["moe-tiny", "moe-tiny", "pending", "tiny", "7", "2"]
    assert line.endswith("its pods are not there yet")


def test_a_run_that_runs_is_refused_and_one_that_has_ended_is_made_anew(ready, monkeypatch):
    run(start, "moe")
    first = ready.get(*JOB)["metadata"]["uid"]
    with pytest.raises(UserError, match=r"^job moe-tiny runs already: "):
        run(start, "moe")
    state(ready, JOB, Succeeded="done")
    delete = ready.delete

    def collect(*words: Any) -> Any:
        found = delete(*words)
        ready.remove(*JOB)
        return found

    monkeypatch.setattr(ready, "delete", collect)
    run(start, "moe", "--steps", "200")
    again = ready.get(*JOB)
    assert again["metadata"]["uid"] != first


def test_what_does_not_go_away_blocks_with_one_line(ready):
    run(start, "moe")
    state(ready, JOB, Failed="a reason")
    with pytest.raises(UserError, match=r"the ended PyTorchJob moe-tiny is still there 0 s after"):
        run(start, "moe")


def test_a_job_of_somebody_else_is_left_alone(ready):
    run(start, "moe")
    ready.change(*JOB, lambda found: found["metadata"]["labels"].update(app="other"))
    with pytest.raises(UserError, match="isomorph has a PyTorchJob moe-tiny that isomorph did not"):
        run(start, "moe")


def test_the_half_of_a_start_does_not_block_the_next(caller, played):
    """An admin may start without `isomorph access`: the volume is made, and the claim."""
    caller.key = "ADMINKEY"
    played.store.create("Namespace", "", NAMESPACE | {"metadata": {"name": "isomorph"}})
    volume, _ = places.volume(Place("isomorph"), LUSTRE)
    played.store.create("PersistentVolume", "", volume)
    run(start, "moe")
    assert played.store.get("PersistentVolumeClaim", "isomorph", "isomorph")
    assert played.store.get(*JOB)


def test_a_member_without_a_volume_is_told_who_makes_it(ready):
    ready.remove("PersistentVolumeClaim", "isomorph", "isomorph")
    with pytest.raises(
        UserError, match=r"refuses \(403\): .*persistentvolumes.*`isomorph access m"
    ):
        run(start, "moe")


def test_a_job_whose_answer_was_lost_is_found(ready, played, monkeypatch):
    make = kubernetes_api.KubernetesApi.create

    def lose(api: Any, body: Any) -> Any:
        played.faults = ["lose"]
        return make(api, body)

    monkeypatch.setattr(kubernetes_api.KubernetesApi, "create", lose)
    assert json.loads(run(start, "moe", "--json"))["job"] == "moe-tiny"
    assert len(ready.all("PyTorchJob")) == 1


def test_a_job_that_was_not_made_says_so(ready, played, monkeypatch):
    make = kubernetes_api.KubernetesApi.create

    def drop(api: Any, body: Any) -> Any:
        played.faults = ["drop"]
        return make(api, body)

    monkeypatch.setattr(kubernetes_api.KubernetesApi, "create", drop)
    with pytest.raises(
        UserError, match=r"does not answer \(\w+\): its endpoint is private, so that"
    ):
        run(start, "moe")
    assert ready.all("PyTorchJob") == []


def test_two_who_start_at_once_get_one_run(ready, monkeypatch):
    run(start, "moe")
    monkeypatch.setattr(eks_jobs.EksJobs, "_check_free", lambda *_: None)
    monkeypatch.setattr(eks_jobs.EksJobs, "_remove", lambda *_: None)
    with pytest.raises(UserError, match="somebody else has started moe-tiny just now"):
        run(start, "moe")


def test_manifests_are_printed_without_asking_kubernetes(caller, played):
    found = json.loads(run(start, "moe", "--manifests"))
    assert [each["kind"] for each in found["items"]] == [
        "PersistentVolume", "PersistentVolumeClaim", "PyTorchJob",
    ]  # fmt: skip
    assert played.asked == []
    everything = json.loads(run(access, "moe", "--manifests"))
    assert [each["kind"] for each in everything["items"]] == [
        "Namespace", "ServiceAccount", "PersistentVolume", "PersistentVolumeClaim", "Role",
        "RoleBinding",
    ]  # fmt: skip
    assert played.asked == []


def test_access_may_run_again_and_makes_no_volume_into_another(caller, played):
    caller.key = "ADMINKEY"
    made = json.loads(run(access, "moe", "--json"))
    assert {"kind": "Role", "name": "isomorph-runs", "namespace": "isomorph"} in made
    before = played.store.all("Role")
    run(access, "moe")
    assert played.store.all("Role") == before
    caller.client("ssm").put_parameter(
        Name="/told", Type="String", Overwrite=True,
        Value=json.dumps({"lustre": LUSTRE | {"mount_name": "other"}}),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"refuses \(422\): .*immutable"):
        run(access, "moe")


def test_a_member_is_no_admin(ready, caller):
    with pytest.raises(UserError, match=r"refuses \(403\): namespaces is forbidden"):
        run(access, "moe")
    caller.key = "STRANGERKEY"
    with pytest.raises(
        UserError, match=r"refuses \(401\): Unauthorized; your role needs an access"
    ):
        run(status, "prod", "moe")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--name", "Big"), "--name is 'Big'; on EKS allowed: up to 50 small letters, digits and"),
        (("--name", "a" * 51), "--name is 'aaa"),
        (("--name", "a-"), "--name is 'a-'"),
        (
            ("--team", "sales"),
            r"--team is 'sales'; teams of prod-moe-123456: research, serving \(in",
        ),
        (("--nodes", "5"), "--nodes is 5; prod-moe-123456 has 4 workers"),
    ],
)
def test_a_run_that_cannot_be(shared, words, said):
    with pytest.raises(UserError, match=said):
        run(start, "moe", *words)
    assert shared.all("PyTorchJob") == []


def test_a_cluster_without_teams_says_so(ready):
    with pytest.raises(UserError, match="--team is 'sales'; teams of prod-moe-123456: none"):
        run(start, "moe", "--team", "sales")


def test_a_team_without_its_queue_is_refused(shared):
    shared.remove("LocalQueue", RESEARCH, f"{RESEARCH}-localqueue")
    with pytest.raises(UserError, match=f"{RESEARCH} has no queue {RESEARCH}-localqueue of Kueue"):
        run(start, "moe")


def test_a_member_sees_the_own_teams_runs_and_an_admin_all(shared, caller):
    run(start, "moe", "--team", "research")
    caller.key = "ADMINKEY"
    with pytest.raises(UserError, match="job research/moe-tiny runs already"):
        run(start, "moe", "--team", "serving")
    run(start, "moe", "--team", "serving", "--name", "other")
    both = json.loads(run(status, "prod", "moe", "--json"))
    assert {each["job"] for each in both} == {"research/moe-tiny", "serving/other"}
    caller.key = "MEMBERKEY"
    [own] = json.loads(run(status, "prod", "moe", "--json"))
    assert own["job"] == "research/moe-tiny"
    with pytest.raises(
        UserError, match="there is no job other on prod-moe-123456; jobs: research/"
    ):
        run(logs, "moe", "--job", "other")


def test_a_member_of_no_team_is_told(shared, played, monkeypatch):
    monkeypatch.setitem(__import__(
        "tests.isomorph.kubernetes_played.server", fromlist=["GROUPS_OF"]
    ).GROUPS_OF, "MEMBERKEY", {"none"})  # fmt: skip
    with pytest.raises(
        UserError, match=r"refuses \(403\): pytorchjobs is forbidden: .*your role m"
    ):
        run(status, "prod", "moe")


def test_what_waits_in_the_queue_says_why(shared):
    run(start, "moe")

    def why() -> tuple[str, str]:
        [found] = json.loads(run(status, "prod", "moe", "--json"))
        return found["state"], found["why"]

    assert why() == ("pending", "Kueue has not seen it yet")
    workload(shared, active=True)
    assert why() == ("pending", "Kueue has admitted it; its pods are not there yet")
    key = ("Workload", RESEARCH, "pytorchjob-moe-tiny-1")
    waits = {"type": "QuotaReserved", "status": "False", "message": "insufficient\nquota"}
    shared.change(*key, lambda found: found.update(status={"conditions": [waits]}))
    assert why() == ("pending", "insufficient quota")
    shared.change(*key, lambda found: found["spec"].update(active=False))
    assert why() == ("stopped", "")
    evicted = {"type": "Evicted", "status": "True", "reason": "DeactivatedDueToRequeuingLimit",
               "message": "exceeded the maximum number of re-queuing retries"}  # fmt: skip
    shared.change(*key, lambda found: found.update(status={"conditions": [evicted]}))
    assert why() == ("stopped", "exceeded the maximum number of re-queuing retries")


@pytest.mark.parametrize(
    ("conditions", "phase", "expected"),
    [
        ({"Created": ""}, "Running", "running"),
        ({"Running": ""}, "Pending", "pending"),
        ({"Restarting": ""}, "Pending", "running"),
        ({"Succeeded": ""}, "Succeeded", "done"),
        ({"Failed": "backoff limit"}, None, "failed"),
        ({}, None, "pending"),
    ],
)
def test_states_have_the_words_of_slurm(ready, conditions, phase, expected):
    run(start, "moe")
    state(ready, JOB, **conditions)
    if phase:
        pod(ready, phase=phase)
    [found] = json.loads(run(status, "prod", "moe", "--json"))
    assert found["state"] == expected
    if expected == "failed":
        assert found["why"] == "backoff limit"


@pytest.mark.parametrize(
    ("status_", "said"),
    [
        ({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no node"}]},
         "no node"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]},
         "ErrImagePull: no more is known"),
        ({}, "its pods are not there yet"),
    ],
)  # fmt: skip
def test_a_pod_that_does_not_run_says_why(ready, status_, said):
    run(start, "moe")
    pod(ready, phase="Pending", **status_)
    [found] = json.loads(run(status, "prod", "moe", "--json"))
    assert found["why"] == said


def test_pods_of_an_older_run_of_the_name_do_not_count(ready):
    run(start, "moe")
    pod(ready, phase="Running")

    def age(found: Any) -> None:
        found["metadata"]["ownerReferences"][0]["uid"] = "old"

    ready.change("Pod", "isomorph", "moe-tiny-worker-0", age)
    [found] = json.loads(run(status, "prod", "moe", "--json"))
    assert found["state"] == "pending"


def test_objects_that_lack_everything_are_shown():
    found = row(Place("n"), {"metadata": {"name": "a"}}, None, [{}])
    assert (found["job"], found["state"]) == ("a", "pending")


def test_stop_deactivates_what_kueue_has_queued(shared):
    run(start, "moe")
    with pytest.raises(UserError, match="Kueue has made no Workload of job research/moe-tiny, by"):
        run(stop, "moe", "--no-wait")
    workload(shared, active=True)
    run(stop, "moe", "--no-wait")
    assert shared.get("Workload", RESEARCH, "pytorchjob-moe-tiny-1")["spec"]["active"] is False
    assert "suspend" not in shared.get("PyTorchJob", RESEARCH, "moe-tiny")["spec"]["runPolicy"]
    with pytest.raises(UserError, match="there is no job that runs on prod-moe-123456; jobs: res"):
        run(stop, "moe")
    with pytest.raises(UserError, match="job research/moe-tiny does not run: it is stopped"):
        run(stop, "moe", "--job", "moe-tiny")


def test_stop_without_kueue_waits_until_the_pods_are_gone(ready, monkeypatch):
    run(start, "moe")
    pod(ready, phase="Running")
    looked: list[str] = []

    def sleep(_: float) -> None:
        [found] = json.loads(run(status, "prod", "moe", "--json"))
        looked.append(found["state"])
        if len(looked) > 1:
            ready.remove("Pod", "isomorph", "moe-tiny-worker-0")

    monkeypatch.setattr("time.sleep", sleep)
    said = json.loads(run(stop, "moe", "--json"))
    assert (said["state"], said["why"]) == ("stopped", "")
    assert looked == ["running", "running"]
    assert ready.get(*JOB)["spec"]["runPolicy"]["suspend"] is True


def test_a_job_that_somebody_deletes_is_gone(ready, monkeypatch):
    run(start, "moe")
    monkeypatch.setattr(kubernetes_api.KubernetesApi, "get", lambda *_: None)
    with pytest.raises(
        UserError, match="job moe-tiny is gone: somebody has deleted its PyTorchJob"
    ):
        run(stop, "moe")


def test_a_job_on_eks_is_a_name(ready):
    run(start, "moe")
    with pytest.raises(
        UserError, match="--job is '7'; on EKS a run has a name, or TEAM/NAME; jobs"
    ):
        run(logs, "moe", "--job", "7")
    with pytest.raises(UserError, match="there is no job other on prod-moe-123456; jobs: moe-tiny"):
        run(stop, "moe", "--job", "other")


def test_a_name_in_two_teams_is_asked_for(shared, caller, monkeypatch):
    caller.key = "ADMINKEY"
    monkeypatch.setattr(eks_jobs.EksJobs, "_check_free", lambda *_: None)
    for team in ("research", "serving"):
        run(start, "moe", "--team", team)
    with pytest.raises(
        UserError, match=r"--job moe-tiny may be \w+/moe-tiny, \w+/moe-tiny; name one"
    ):
        run(logs, "moe", "--job", "moe-tiny")
    assert run(logs, "moe", "--job", "serving/moe-tiny") == ""


def test_the_whole_environment_is_shown_too(caller, monkeypatch):
    nodes = [{"InstanceId": "i-1", "InstanceGroupName": "workers", "InstanceType": "ml.p5e",
              "InstanceStatus": {"Status": "Running"}}]  # fmt: skip
    monkeypatch.setattr(TrainingCluster, "nodes", lambda _: nodes)
    described = {"status": "CREATE_COMPLETE", "outputs": OUTPUTS}
    monkeypatch.setattr(
        "isomorph.environments.Environment.describe",
        lambda _, stack: described if stack == "moe-training" else None,
    )
    assert "1 of 1 nodes run" in run(status, "prod")


def test_scripts_and_variables_fit(ready):
    run(start, "moe")
    [container] = ready.get(*JOB)["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"][
        "containers"
    ]
    given = {each["name"] for each in container["env"]}
    read = Path("model_code/moe/lifecycle/pod.sh").read_text()
    for name in ("JOB_TEXTS", "JOB_RANKS", "JOB_VOCABULARY", "ISOMORPH_SHARED"):
        assert name in given
        assert f"${name}" in read
