"""ConfigMaps, Secrets, claims and scratch volumes, as environment and as files."""

import base64
import re
import subprocess

import pytest
from local_helpers import (
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


def reference(name, key):
    return {"valueFrom": {"configMapKeyRef": {"name": name, "key": key}}}


def test_config_map_as_environment_and_files(cluster):
    env = [{"name": name, **reference("settings", name.lower())} for name in ("ONE", "LONG")]
    items = mounted(
        'echo "$ONE"; echo "$LONG" | wc -l; cat $FOLDER/one; stat -c %a $FOLDER/one',
        {"configMap": {"name": "settings", "defaultMode": 0o640}},
        env=env,
    )
    items.append(config_map("settings", one="1\n", long="a\nb\nc"))
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    assert texts(work) == ["1", "", "3", "1", "640"]


def test_missing_config_map_is_waited_for(cluster):
    items = job("echo $ONE", env=[{"name": "ONE", **reference("late", "one")}])
    work = cluster.apply_objects("work", items)
    until(lambda: list(work.table()["state"]) == ["CreateContainerConfigError"])
    assert list(work.table()["reason"]) == ['configmap "late" not found']
    assert 'Error: configmap "late" not found' in set(work.events()["message"])
    cluster.apply_objects("late", [config_map("late", two="2")])
    until(lambda: "couldn't find key one in ConfigMap default/late" in list(work.table()["reason"]))
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


def test_items_choose_and_rename_files(cluster):
    volume = {"configMap": {"name": "settings", "items": [{"key": "one", "path": "sub/uno"}]}}
    items = mounted("cd $FOLDER; find . -type f; cat sub/uno", volume)
    items.append(config_map("settings", one="1\n", two="2\n"))
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    assert texts(work) == ["./sub/uno", "1"]


def test_secret_reaches_the_container_and_nobody_else(cluster):
    script = "wc -c < $FOLDER/token; wc -c < $FOLDER/more; stat -c %a $FOLDER/token; sleep 600"
    items = mounted(script, {"secret": {"secretName": "door", "defaultMode": 0o444}})
    item = secret("door", token=SECRET)
    item.body["data"] = {"more": base64.b64encode(SECRET.encode()).decode()}
    items.append(item)
    work = cluster.apply_objects("work", items).wait_ready(timeout_s=300)
    until(lambda: texts(work) == [str(len(SECRET))] * 2 + ["600"])

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
    assert cluster.secret("door", "token") == cluster.secret("door", "more") == SECRET
    with pytest.raises(NotFoundError, match=r"Secret/door with key 'other'"):
        cluster.secret("door", "other")
    cluster.delete("work")
    left = [file for file in holders if file.exists()]
    assert left == [], "nothing that holds it stays"


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
