"""ConfigMaps, Secrets, claims and scratch volumes, as environment and as files."""

import base64
import re
import subprocess

import pytest
from local_helpers import (
    body,
    config_map,
    job,
    pod_spec,
    secret,
    texts,
    until,
)

from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import NotFoundError

SECRET = "s3cr3t-Pa55word"


@pytest.fixture
def cluster(busy_cluster):
    return busy_cluster


def mounted(script, volume, *, env=(), path="/conf", **spec):
    """A Job with one volume at `path`, whose folder is in FOLDER."""
    items = job(script, env=[{"name": "FOLDER", "value": path}, *env], **spec)
    pods = pod_spec(items)
    pods["volumes"] = [{"name": "v", **volume}]
    pods["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": path}]
    return items


def claim(name, storage="local-path"):
    spec = {"storageClassName": storage, "accessModes": ["ReadWriteMany"]}
    metadata = {"name": name}
    return Object(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec},
        "test",
    )


def address(workload):
    return workload.observe().pods[0]["status"]["podIP"]


def reference(kind, name, key, **more):
    return {"valueFrom": {kind: {"name": name, "key": key, **more}}}


def test_config_map_as_environment_and_files(cluster):
    env = [
        {"name": "ONE", **reference("configMapKeyRef", "settings", "one")},
        {"name": "NONE", **reference("configMapKeyRef", "settings", "none", optional=True)},
        {"name": "LONG", **reference("configMapKeyRef", "settings", "long")},
    ]
    items = mounted(
        'echo "$ONE ${NONE-unset}"; echo "$LONG" | wc -l; echo $two; cat $FOLDER/one; '
        "stat -c %a $FOLDER/one",
        {"configMap": {"name": "settings", "defaultMode": 0o640}},
        env=env,
    )
    pod_spec(items)["containers"][0]["envFrom"] = [{"configMapRef": {"name": "settings"}}]
    items.append(config_map("settings", one="1\n", two="zwei", long="a\nb\nc"))
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    assert texts(work) == ["1", " unset", "3", "zwei", "1", "640"]


def test_missing_config_map_is_waited_for(cluster):
    items = job("echo $ONE", env=[{"name": "ONE", **reference("configMapKeyRef", "late", "one")}])
    work = cluster.apply_objects("work", items)
    until(lambda: list(work.table()["state"]) == ["CreateContainerConfigError"])
    assert list(work.table()["reason"]) == ['configmap "late" not found']
    assert 'Error: configmap "late" not found' in set(work.events()["message"])
    cluster.apply_objects("late", [config_map("late", two="2")])
    until(lambda: "couldn't find key one in ConfigMap late" in list(work.table()["reason"]))
    changed = cluster.apply_objects("late", [config_map("late", one="1")])
    assert changed.actions == {"ConfigMap/late": "configured"}
    work.wait_complete(timeout_s=300)
    assert texts(work) == ["1"]


def test_missing_config_map_volume_is_waited_for(cluster):
    items = mounted("cat $FOLDER/one", {"configMap": {"name": "late"}})
    work = cluster.apply_objects("work", items)
    until(lambda: list(work.table()["state"]) == ["ContainerCreating"])
    said = 'MountVolume.SetUp failed for volume "v" : configmap "late" not found'
    assert list(work.table()["reason"]) == [said]
    assert ("FailedMount", said) in {(e.reason, e.message) for e in work.events().itertuples()}
    cluster.apply_objects("late", [config_map("late", one="1")])
    work.wait_complete(timeout_s=300)
    assert texts(work) == ["1"]


def test_mounted_files_follow_their_config_map(cluster):
    script = "cat $FOLDER/one; until grep -q new $FOLDER/one; do sleep 0.05; done; ls $FOLDER"
    items = mounted(script, {"configMap": {"name": "settings"}})
    items.append(config_map("settings", one="old\n", gone="x"))
    work = cluster.apply_objects("work", items)
    until(lambda: texts(work) == ["old"])
    items[-1] = config_map("settings", one="new\n", more="y")
    assert cluster.apply_objects("work", items).actions["Job/work"] == "unchanged"
    work.wait_complete(timeout_s=300)
    assert {"more", "one"} <= set(texts(work))


def test_items_choose_and_rename_files(cluster):
    volume = {"configMap": {"name": "settings", "items": [{"key": "one", "path": "sub/uno"}]}}
    items = mounted("cd $FOLDER; find . -type f; cat sub/uno", volume)
    items.append(config_map("settings", one="1\n", two="2\n"))
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    assert texts(work) == ["./sub/uno", "1"]


def test_secret_reaches_the_container_and_nobody_else(cluster):
    script = (
        '[ "$TOKEN" = "$(cat $FOLDER/token)" ] && echo same; stat -c %a $FOLDER/token; sleep 600'
    )
    items = mounted(
        script,
        {"secret": {"secretName": "door", "defaultMode": 0o444}},
        env=[{"name": "TOKEN", **reference("secretKeyRef", "door", "token")}],
    )
    items.append(secret("door", token=SECRET))
    work = cluster.apply_objects("work", items).wait_ready(timeout_s=300)
    until(lambda: texts(work) == ["same", "600"])

    shown = [repr(work), work._repr_html_(), repr(cluster), str(work.observe()), str(work.actions)]
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    shown.append(commands.stdout)
    for text in shown:
        assert SECRET not in text
    holders = []
    for folder in (cluster.paths.folder, cluster.paths.runtime):
        # What is being written is there for a moment under another name.
        for file in (path for path in folder.rglob("*") if path.suffix != ".new"):
            if file.is_file() and SECRET in file.read_text(errors="replace"):
                assert file.stat().st_mode & 0o077 == 0, f"others can read {file}"
                holders.append(file)
    assert holders, "the test looks at the right folders"
    assert cluster.secret("door", "token") == SECRET
    cluster.delete("work")
    left = [file for file in holders if file.exists()]
    assert left == [], "nothing that holds it stays"


def test_wrong_secret_is_refused_without_showing_it(cluster):
    for wrong in ({"stringData": {"token": [SECRET]}}, {"data": {"token": SECRET}},
                  {"stringData": {"to ken": SECRET}}):  # fmt: skip
        item = Object(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, **wrong}, "f"
        )
        with pytest.raises(Exception, match=r"f: Secret/x: ") as error:
            cluster.apply_objects("x", [item])
        assert SECRET not in str(error.value)


def test_secret_of_base64_data(cluster):
    data = {"token": base64.b64encode(SECRET.encode()).decode()}
    item = Object(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "data": data}, ""
    )
    items = job('[ "$T" = "$W" ] && echo same', env=[
        {"name": "T", **reference("secretKeyRef", "x", "token")}, {"name": "W", "value": SECRET},
    ])  # fmt: skip
    work = cluster.apply_objects("work", [*items, item])
    work.wait_complete(timeout_s=300)
    assert texts(work) == ["same"]
    assert cluster.secret("x", "token") == SECRET
    with pytest.raises(NotFoundError, match=r"Secret/x with key 'other'"):
        cluster.secret("x", "other")


def test_generated_secret_is_made_once(cluster):
    item = secret("door")
    item.body["metadata"]["annotations"] = {"workshop.techpulse/generate": "token"}
    first = cluster.apply_objects("door", [item])
    token = cluster.secret("door", "token")
    assert re.fullmatch(r"[0-9a-f]{64}", token) and token not in repr(first)
    again = cluster.apply_objects("door", [item])
    assert again.actions == {"Secret/door": "unchanged"}
    assert cluster.secret("door", "token") == token
    cluster.delete("door")
    cluster.apply_objects("door", [item])
    assert cluster.secret("door", "token") != token


def test_claim_outlives_its_component_until_it_is_named(cluster):
    def apply(script):
        items = mounted(script, {"persistentVolumeClaim": {"claimName": "kept"}})
        work = cluster.apply_objects("work", [*items, claim("kept")])
        work.wait_complete(timeout_s=300)
        return work

    apply("echo data > $FOLDER/file")
    cluster.delete("work")
    assert "work" not in cluster.components()
    assert texts(apply("cat $FOLDER/file")) == ["data"]
    with pytest.raises(NotFoundError, match=r"has no claim '\.\./\.\./x'; it has kept"):
        cluster.delete("work", claims=["../../x"])
    cluster.delete("work", claims=["kept"])
    assert texts(apply("ls -A $FOLDER | wc -l")) == ["0"]


def test_two_components_share_a_claim(cluster):
    volume = {"persistentVolumeClaim": {"claimName": "kept"}}
    one = mounted("echo here > $FOLDER/file", volume)
    cluster.apply_objects("one", [*one, claim("kept")]).wait_complete(timeout_s=300)
    two = [*mounted("cat $FOLDER/file", volume), claim("kept")]
    body(two, "Job")["metadata"]["name"] = "reader"
    work = cluster.apply_objects("two", two)
    work.wait_complete(timeout_s=300)
    assert texts(work) == ["here"]


def test_model_cache_is_the_machines_own(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODELS_DIR", str(tmp_path))
    (tmp_path / "a-model").touch()
    items = mounted("ls $FOLDER", {"persistentVolumeClaim": {"claimName": "models"}})
    work = cluster.apply_objects("work", [*items, claim("models", "model-cache")])
    work.wait_complete(timeout_s=300)
    assert "a-model" in texts(work)
    cluster.delete("work", claims=["models"])
    assert (tmp_path / "a-model").exists(), "other checkouts use it too"


def test_scratch_volume_is_empty_for_a_new_pod(cluster):
    script = "ls -A $FOLDER | wc -l; touch $FOLDER/x; exit 1"
    work = cluster.apply_objects("work", mounted(script, {"emptyDir": {}}, backoffLimit=2))
    until(lambda: len(work.pods) == 3)
    until(lambda: texts(work) == ["0", "0", "0"])


def test_scratch_volume_outlives_a_restart_of_its_container(cluster):
    script = "ls -A $FOLDER | wc -l; [ -e $FOLDER/x ] && exit 0; touch $FOLDER/x; exit 1"
    items = mounted(script, {"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})
    pod_spec(items)["restartPolicy"] = "OnFailure"
    body(items, "Job")["spec"]["backoffLimit"] = 5
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    assert texts(work, previous=True) + texts(work) == ["0", "1"]


def test_sub_path_and_working_folder(cluster):
    items = mounted("pwd; ls", {"emptyDir": {}}, path="/data")
    container = pod_spec(items)["containers"][0]
    container["volumeMounts"][0]["subPath"] = "inner"
    container["workingDir"] = "/data/deep"
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    assert texts(work)[0].endswith("/inner/deep")


def test_read_only_folders_of_a_pod_can_be_deleted(cluster):
    script = "mkdir -p $FOLDER/a/b; touch $FOLDER/a/b/c; chmod 555 $FOLDER/a/b $FOLDER/a"
    work = cluster.apply_objects("work", mounted(script, {"emptyDir": {}}))
    work.wait_complete(timeout_s=300)
    folder = cluster.paths.volumes / f"{address(work).rsplit('.', 1)[1]}-0"
    assert folder.is_dir()
    cluster.delete("work")
    assert not folder.exists()


def test_odd_values_arrive_as_they_are(cluster):
    odd = "two\nlines  'and' \"quotes\" 100% $HOME `x` ; # \\ ü"
    items = job('printf "%s\\n" "$ODD" "$0" "$1"', env=[{"name": "ODD", "value": odd}])
    pod_spec(items)["containers"][0]["args"] = ["%d ; '\"", "$(ODD) $$(ODD) $(NOT_THERE)"]
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    assert "\n".join(texts(work)) == f"{odd}\n%d ; '\"\n{odd} $(ODD) $(NOT_THERE)"
