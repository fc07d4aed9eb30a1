"""What the Terraform files say, read as HCL with the parser that checkov brings."""

import functools
import json
import re

import pytest
from separate import needed, run

from workshop_lib.cluster import manifests

FOLDER = manifests.manifests_dir() / "terraform"
PARSE = """
import hcl2, json, pathlib, sys
found = [hcl2.loads(path.read_text()) for path in sorted(pathlib.Path(sys.argv[1]).glob("*.tf"))]
print(json.dumps(found))
"""

pytestmark = needed


def plain(node):
    """Without what the parser adds: lists of one, marks of lines."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if not key.startswith("__")}
    if isinstance(node, list):
        return plain(node[0]) if len(node) == 1 else [plain(value) for value in node]
    return node


@functools.cache
def blocks(kind):
    """Every block of a kind (resource, data, …): type.name to its content."""
    done = run("python", "-c", PARSE, FOLDER)
    assert done.returncode == 0, done.stderr
    found = {}
    for file in json.loads(done.stdout):
        for block in file.get(kind, []):
            for outer, inner in block.items():
                if kind in ("resource", "data"):
                    found |= {f"{outer}.{name}": plain(body) for name, body in inner.items()}
                else:
                    found[outer] = plain(inner)
    return found


def resource(name):
    return blocks("resource")[name]


def statements(name):
    found = blocks("data")[f"aws_iam_policy_document.{name}"]["statement"]
    return found if isinstance(found, list) else [found]


def listed(value):
    return value if isinstance(value, list) else [value]


def test_the_repository_scans_keeps_ten_and_moves_no_tag():
    repository = resource("aws_ecr_repository.serving")
    assert repository["image_tag_mutability"] == "IMMUTABLE"
    assert repository["image_scanning_configuration"] == {"scan_on_push": True}
    assert repository["encryption_configuration"]["encryption_type"] == "KMS"
    policy = str(resource("aws_ecr_lifecycle_policy.serving")["policy"])
    assert "imageCountMoreThan" in policy and re.search(r"countNumber\W+10\b", policy)


def test_both_buckets_are_closed_encrypted_and_versioned():
    shared = [name for name, body in blocks("resource").items()
              if name.startswith("aws_s3_bucket") and name.endswith(".this")]  # fmt: skip
    assert len(shared) == 7
    for name in shared:
        assert resource(name)["for_each"] == "${local.buckets}", name
    closed = resource("aws_s3_bucket_public_access_block.this")
    assert [value for key, value in closed.items() if re.search("block|ignore|restrict", key)] == [
        True, True, True, True,
    ]  # fmt: skip
    rule = resource("aws_s3_bucket_server_side_encryption_configuration.this")["rule"]
    assert rule["apply_server_side_encryption_by_default"]["sse_algorithm"] == "aws:kms"
    versioning = resource("aws_s3_bucket_versioning.this")["versioning_configuration"]
    assert versioning == {"status": "Enabled"}
    tiering, leftovers = resource("aws_s3_bucket_lifecycle_configuration.this")["rule"]
    assert tiering["transition"] == {"days": 0, "storage_class": "INTELLIGENT_TIERING"}
    assert leftovers["abort_incomplete_multipart_upload"] == {"days_after_initiation": 1}
    assert "aws_s3_bucket_intelligent_tiering_configuration.this" not in blocks("resource"), (
        "archive tiers would make a model wait for hours"
    )


def test_who_does_not_come_over_tls_is_denied():
    (only,) = statements("tls")
    assert only["effect"] == "Deny" and only["actions"] == "s3:*"
    assert only["condition"]["variable"] == "aws:SecureTransport"
    assert only["condition"]["values"] == "false"


@pytest.mark.parametrize("name", ["prestage", "reader", "build", "trigger"])
def test_a_role_may_do_what_it_needs(name):
    wanted = {
        "prestage": {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject",
                     "s3:AbortMultipartUpload", "kms:GenerateDataKey", "kms:Decrypt"},
        "reader": {"s3:ListBucket", "s3:GetObject", "kms:Decrypt"},
        "trigger": {"codebuild:StartBuild"},
    }  # fmt: skip
    found = {action for each in statements(name) for action in listed(each["actions"])}
    assert found == wanted.get(name, found)
    for each in statements(name):
        for action in listed(each["actions"]):
            assert "*" not in action
        if listed(each["resources"]) == ["*"]:
            assert listed(each["actions"]) == ["ecr:GetAuthorizationToken"]
        if listed(each["actions"]) == ["s3:ListBucket"] and name != "build":
            assert each["condition"]["variable"] == "s3:prefix"
            assert each["condition"]["values"] == "${var.models_prefix}/*"


def test_pods_get_their_roles_by_pod_identity_for_one_account_each():
    for name in ("prestage", "reader"):
        association = resource(f"aws_eks_pod_identity_association.{name}")
        assert association["service_account"] == f"model-{name}"
        assert association["role_arn"] == f'${{aws_iam_role.this["{name}"].arn}}'
    text = (FOLDER / "identity.tf").read_text()
    assert '"aws:RequestTag/kubernetes-service-account" = "model-${each.key}"' in text
    assert '"aws:RequestTag/eks-cluster-name"           = var.cluster_name' in text


def test_a_new_source_starts_the_build_and_nothing_else_does():
    rule = str(resource("aws_cloudwatch_event_rule.build")["event_pattern"])
    assert "Object Created" in rule and "image/TAG" in rule
    assert resource("aws_s3_bucket_notification.build")["eventbridge"] is True
    target = resource("aws_cloudwatch_event_target.build")
    assert target["arn"] == "${aws_codebuild_project.serving.arn}"
    assert resource("aws_s3_object.tag")["key"] == "image/TAG"
    project = resource("aws_codebuild_project.serving")
    assert "/image/" in project["source"]["location"]
    specification = (FOLDER / "buildspec.yaml").read_text()
    assert "describe-images" in specification, "a tag is not pushed twice"


def test_nothing_secret_is_in_the_files():
    for path in FOLDER.iterdir():
        if path.is_file():
            assert not re.search(r"AKIA[0-9A-Z]{16}|secret_key|hf_[A-Za-z0-9]{8}", path.read_text())
