# Who may do what. A pod gets its role from its service account by EKS Pod Identity: no key is stored,
# and the node's own role has none of this.
locals {
  services = {
    build    = "codebuild.amazonaws.com"
    trigger  = "events.amazonaws.com"
    prestage = local.pods
    reader   = local.pods
  }
  pods   = "pods.eks.amazonaws.com"
  models = "${aws_s3_bucket.this["models"].arn}/${var.models_prefix}"
}

resource "aws_iam_role" "this" {
  for_each           = local.services
  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust[each.key].json
}

# A service assumes a role for this account only; the Pod Identity agent only for pods of this cluster
# with the service account that the role is for, as it says in the session's tags.
data "aws_iam_policy_document" "trust" {
  for_each = local.services
  statement {
    actions = each.value == local.pods ? ["sts:AssumeRole", "sts:TagSession"] : ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = [each.value]
    }
    dynamic "condition" {
      for_each = each.value == local.pods ? {
        "aws:RequestTag/eks-cluster-name"           = var.cluster_name
        "aws:RequestTag/kubernetes-service-account" = "model-${each.key}"
      } : { "aws:SourceAccount" = local.account }
      content {
        test     = "StringEquals"
        variable = condition.key
        values   = [condition.value]
      }
    }
  }
}

# -- pods -----------------------------------------------------------------------------------------

data "aws_iam_policy_document" "prestage" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this["models"].arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["${var.models_prefix}/*"]
    }
  }
  statement {
    sid       = "Write"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["${local.models}/*"]
  }
  statement {
    sid       = "Encrypt"
    actions   = ["kms:GenerateDataKey", "kms:Decrypt"]
    resources = [aws_kms_key.workshop.arn]
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "reader" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this["models"].arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["${var.models_prefix}/*"]
    }
  }
  statement {
    sid       = "Read"
    actions   = ["s3:GetObject"]
    resources = ["${local.models}/*"]
  }
  statement {
    sid       = "Decrypt"
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.workshop.arn]
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy" "prestage" {
  name   = "models"
  role   = aws_iam_role.this["prestage"].id
  policy = data.aws_iam_policy_document.prestage.json
}

resource "aws_iam_role_policy" "reader" {
  name   = "models"
  role   = aws_iam_role.this["reader"].id
  policy = data.aws_iam_policy_document.reader.json
}

resource "aws_eks_pod_identity_association" "prestage" {
  for_each        = var.prestage_namespaces
  cluster_name    = var.cluster_name
  namespace       = each.key
  service_account = "model-prestage"
  role_arn        = aws_iam_role.this["prestage"].arn
}

resource "aws_eks_pod_identity_association" "reader" {
  for_each        = var.namespaces
  cluster_name    = var.cluster_name
  namespace       = each.key
  service_account = "model-reader"
  role_arn        = aws_iam_role.this["reader"].arn
}

resource "aws_eks_addon" "this" {
  for_each     = var.addons
  cluster_name = var.cluster_name
  addon_name   = each.key
}

# -- the build and what starts it -----------------------------------------------------------------

data "aws_iam_policy_document" "build" {
  statement {
    sid       = "Login"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"] # this action knows no resource
  }
  statement {
    sid = "Push"
    actions = [
      "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:CompleteLayerUpload",
      "ecr:DescribeImages", "ecr:GetDownloadUrlForLayer", "ecr:InitiateLayerUpload", "ecr:PutImage",
      "ecr:UploadLayerPart",
    ]
    resources = [aws_ecr_repository.serving.arn]
  }
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this["build"].arn]
  }
  statement {
    sid       = "Source"
    actions   = ["s3:GetObject", "s3:GetObjectVersion"]
    resources = ["${aws_s3_bucket.this["build"].arn}/image/*"]
  }
  statement {
    sid       = "Decrypt"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.workshop.arn]
  }
  statement {
    sid       = "Log"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.build.arn}:*"]
  }
}

resource "aws_iam_role_policy" "build" {
  name   = "build"
  role   = aws_iam_role.this["build"].id
  policy = data.aws_iam_policy_document.build.json
}

data "aws_iam_policy_document" "trigger" {
  statement {
    sid       = "Start"
    actions   = ["codebuild:StartBuild"]
    resources = [aws_codebuild_project.serving.arn]
  }
}

resource "aws_iam_role_policy" "trigger" {
  name   = "start"
  role   = aws_iam_role.this["trigger"].id
  policy = data.aws_iam_policy_document.trigger.json
}
