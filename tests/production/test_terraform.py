"""manifests/terraform in the hands of terraform itself.

Without AWS' provider: format, and what its locals come to. Where the provider can be had, on a
machine that reaches Terraform's registry, also validated, planned and applied to moto.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess

import pytest

from workshop_lib.cluster import manifests

FOLDER = manifests.manifests_dir() / "terraform"
TERRAFORM = shutil.which("terraform")
pytestmark = pytest.mark.skipif(TERRAFORM is None, reason="terraform is not installed")

# What goes to moto. EKS is not among it: moto knows no Pod Identity associations.
SERVICES = ("codebuild", "ecr", "events", "iam", "kms", "logs", "s3", "sts")
OVERRIDE = """
provider "aws" {{
  access_key              = "x"
  secret_key              = "y"
  region                  = "us-east-1"
  skip_metadata_api_check = true
  s3_use_path_style       = true
  endpoints {{
{endpoints}
  }}
}}
"""


def terraform(*arguments, folder=FOLDER, timeout=300, said=""):
    environment = {key: value for key, value in os.environ.items()
                   if not key.startswith(("AWS_", "TF_"))}  # fmt: skip
    environment |= {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
    return subprocess.run(
        [TERRAFORM, *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout,
        input=said, env=environment,
    )  # fmt: skip


def test_the_files_are_formatted():
    done = terraform("fmt", "-check", "-diff", "-recursive")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_s_tag_is_its_versions_and_what_it_is_built_from(tmp_path):
    """terraform's own answer, for the locals alone, which need no provider."""
    text = (FOLDER / "image.tf").read_text()
    block = re.search(r"(?ms)^locals \{.*?^\}", text)[0]
    place = tmp_path / "terraform"
    place.mkdir()
    (place / "image.tf").write_text(block)
    images = tmp_path / "images/serving"
    shutil.copytree(FOLDER.parent / "images/serving", images)
    names = ("Dockerfile", "requirements.txt")
    assert set(names) == {path.name for path in images.iterdir()}, "all of it is built"

    def tag():
        done = terraform("console", folder=place, said="local.tag\n")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    sums = [hashlib.sha256((images / name).read_bytes()).hexdigest() for name in names]
    pins = dict(re.findall(r"(?m)^(ray|vllm)\S*==(\S+)$", (images / names[1]).read_text()))
    short = hashlib.sha256("".join(sums).encode()).hexdigest()[:8]
    first = tag()
    assert first == f"{pins['ray']}-{pins['vllm']}-{short}"
    with (images / "Dockerfile").open("a") as file:
        file.write("# changed\n")
    assert tag() != first, "a tag is never moved, so a change needs another"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("name", "Upper"), ("name", "x"), ("models_prefix", "a/"), ("models_prefix", "/a")],
)
def test_the_patterns_of_variables_refuse(variable, value):
    text = (FOLDER / "variables.tf").read_text()
    block = re.search(rf'(?ms)^variable "{variable}" \{{.*?^\}}', text)[0]
    pattern = re.search(r'regex\("(.*?)", var', block)[1]
    default = re.search(r'default\s+= "(.*?)"', block)[1]
    assert re.search(pattern, default) and not re.search(pattern, value)


def test_the_prefix_is_what_the_manifests_take():
    text = (FOLDER / "variables.tf").read_text()
    for component in ("prestage", "models-s3"):
        pattern = manifests.parameters_of("eks", component)["prefix"].pattern
        assert f'regex("^{pattern}$", var.models_prefix)' in text


@pytest.fixture(scope="module")
def initialised(tmp_path_factory):
    """A copy with AWS' provider; skips where the registry is out of reach."""
    folder = tmp_path_factory.mktemp("manifests")
    shutil.copytree(FOLDER, folder / "terraform", ignore=shutil.ignore_patterns(".terraform*"))
    shutil.copytree(FOLDER.parent / "images", folder / "images")
    done = terraform("init", "-backend=false", "-input=false", "-no-color",
                     folder=folder / "terraform")  # fmt: skip
    if done.returncode:
        assert "provider" in done.stderr, done.stderr
        pytest.skip("AWS' provider cannot be had: Terraform's registry is out of reach")
    return folder / "terraform"


def test_it_is_valid(initialised):
    done = terraform("validate", "-json", folder=initialised)
    assert json.loads(done.stdout)["valid"], done.stdout


@pytest.mark.slow
def test_it_is_applied_to_moto(initialised):
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    from object_store import client

    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        address = "http://{}:{}".format(*moto.get_host_and_port())
        endpoints = "\n".join(f'    {name} = "{address}"' for name in SERVICES)
        (initialised / "test_override.tf").write_text(OVERRIDE.format(endpoints=endpoints))
        wanted = ["-var", "cluster_name=test", "-var", "namespaces=[]", "-input=false",
                  "-var", "prestage_namespaces=[]", "-no-color"]  # fmt: skip
        done = terraform("plan", *wanted, folder=initialised)
        assert done.returncode == 0, done.stderr
        done = terraform("apply", "-auto-approve", *wanted, folder=initialised, timeout=600)
        assert done.returncode == 0, done.stderr
        output = json.loads(terraform("output", "-json", folder=initialised).stdout)
        bucket = output["models_bucket"]["value"]
        s3, ecr = client("s3", address), client("ecr", address)
        (rule,) = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"][
            "Rules"
        ]
        assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
        closed = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
        assert all(closed.values()) and len(closed) == 4
        (repository,) = ecr.describe_repositories()["repositories"]
        assert repository["imageTagMutability"] == "IMMUTABLE"
        assert repository["imageScanningConfiguration"]["scanOnPush"] is True
    finally:
        moto.stop()
