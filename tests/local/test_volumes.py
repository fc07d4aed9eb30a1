"""ConfigMaps, Secrets, claims and scratch volumes, as environment and as files."""

import re
import subprocess

import pytest
from local_helpers import claim, config_map, job, pod_spec, secret, texts, until

from workshop_lib.errors import NotFoundError

SECRET = "s3cr3t-Pa55word"


@pytest.fixture
def cluster(busy_cluster):
    return busy_cluster


def mounted(script, volume, *, env=(), **spec):
    """A Job with one volume, whose folder is in FOLDER."""
    items = job(script, env=[{"name": "FOLDER", "value": "/conf"}, *env], **spec)
    pods = pod_spec(items)
    pods["volumes"] = [{"name": "v", **volume}]
    pods["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/conf"}]
    return items


def reference(name, key):
    return {"valueFrom": {"configMapKeyRef": {"name": name, "key": key}}}


def test_config_map_as_environment_and_files(cluster):
    env = [{"name": name, **reference("settings", name.lower())} for name in ("ONE", "LONG")]
    volume = {"configMap": {"name": "settings", "items": [{"key": "one", "path": "sub/uno"}]}}
    script = 'echo "$ONE"; echo "$LONG" | wc -l; cd $FOLDER; find . -type f; cat sub/uno'
    items = [*mounted(script, volume, env=env), config_map("settings", one="1\n", long="a\nb\nc")]
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    assert texts(work) == ["1", "", "3", "./sub/uno", "1"]


def test_what_is_missing_is_waited_for(cluster):
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
    work = cluster.apply_objects("work", mounted("ls $FOLDER", {"configMap": {"name": "late"}}))
    until(lambda: list(work.table()["state"]) == ["ContainerCreating"])
    said = 'MountVolume.SetUp failed for volume "v" : configmap "late" not found'
    assert list(work.table()["reason"]) == [said]
    assert ("FailedMount", said) in {(e.reason, e.message) for e in work.events().itertuples()}
    cluster.apply_objects("late", [config_map("late", one="1")])
    work.wait_complete(timeout_s=300)
    assert texts(work) == ["one"]


def test_secret_reaches_the_container_and_nobody_else(cluster):
    script = "wc -c < $FOLDER/token; stat -c %a $FOLDER/token; sleep 600"
    items = mounted(script, {"secret": {"secretName": "door", "defaultMode": 0o444}})
    work = cluster.apply_objects("work", [*items, secret("door", token=SECRET)])
    work.wait_ready(timeout_s=300)
    until(lambda: texts(work) == [str(len(SECRET)), "600"])
    shown = [repr(work), work._repr_html_(), repr(cluster), str(work.observe()), str(work.actions)]
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert not any(SECRET in text for text in [*shown, commands.stdout])
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
    assert [file for file in holders if file.exists()] == [], "nothing that holds it stays"


def test_generated_secret_is_made_once(cluster):
    item = secret("door")
    item.body["metadata"]["annotations"] = {"workshop.techpulse/generate": "token"}
    first = cluster.apply_objects("door", [item])
    token = cluster.secret("door", "token")
    assert re.fullmatch(r"[0-9a-f]{64}", token) and token not in repr(first)
    assert cluster.apply_objects("door", [item]).actions == {"Secret/door": "unchanged"}
    assert cluster.secret("door", "token") == token
    cluster.delete("door")
    cluster.apply_objects("door", [item])
    assert cluster.secret("door", "token") != token


def test_claim_outlives_its_component_until_it_is_named(cluster):
    def said(script):
        items = mounted(script, {"persistentVolumeClaim": {"claimName": "kept"}})
        work = cluster.apply_objects("work", [*items, claim("kept")])
        work.wait_complete(timeout_s=300)
        return texts(work)

    said("echo data > $FOLDER/file")
    cluster.delete("work")
    assert "work" not in cluster.components()
    assert said("cat $FOLDER/file") == ["data"]
    with pytest.raises(NotFoundError, match=r"has no claim '\.\./\.\./x'; it has kept"):
        cluster.delete("work", claims=["../../x"])
    cluster.delete("work", claims=["kept"])
    assert said("ls -A $FOLDER | wc -l") == ["0"]


def test_model_cache_is_the_machines_own(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODELS_DIR", str(tmp_path))
    (tmp_path / "a-model").touch()
    items = mounted("ls $FOLDER", {"persistentVolumeClaim": {"claimName": "models"}})
    work = cluster.apply_objects("work", [*items, claim("models", "model-cache")])
    work.wait_complete(timeout_s=300)
    assert "a-model" in texts(work)
    cluster.delete("work", claims=["models"])
    assert (tmp_path / "a-model").exists(), "other checkouts use it too"


def test_scratch_volume_is_empty_for_a_new_pod_and_goes_with_it(cluster):
    script = "ls -A $FOLDER | wc -l; mkdir -p $FOLDER/a/b; chmod 555 $FOLDER/a/b $FOLDER/a; exit 1"
    work = cluster.apply_objects("work", mounted(script, {"emptyDir": {}}, backoffLimit=2))
    until(lambda: texts(work) == ["0", "0", "0"])
    before = set(cluster.paths.volumes.iterdir())
    cluster.delete("work")
    assert len(before - set(cluster.paths.volumes.iterdir())) == 2, "TMPDIR and the volume"


def test_odd_values_arrive_as_they_are(cluster):
    odd = "two\nlines  'and' \"quotes\" 100% $HOME `x` ; # \\ ü"
    items = job('printf "%s\\n" "$ODD" "$0" "$1"', env=[{"name": "ODD", "value": odd}])
    pod_spec(items)["containers"][0]["args"] = ["%d ; '\"", "$(ODD) $$(ODD) $(NOT_THERE)"]
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    assert "\n".join(texts(work)) == f"{odd}\n%d ; '\"\n{odd} $(ODD) $(NOT_THERE)"
