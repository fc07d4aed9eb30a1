# The serving image: what lies in ../images/serving goes to S3, EventBridge sees that it came,
# CodeBuild builds it, ECR scans and keeps it. A change of that folder and `terraform apply` are all
# that a new image takes.
locals {
  folder       = "${path.module}/../images/serving"
  files        = toset(["Dockerfile", "requirements.txt"])
  requirements = file("${local.folder}/requirements.txt")
  versions = join("-", [
    regex("(?m)^ray\\[[^]]*\\]==([0-9.]+)$", local.requirements)[0],
    regex("(?m)^vllm==([0-9.]+)$", local.requirements)[0],
  ])
  content = sha256(join("", [for name in sort(local.files) : filesha256("${local.folder}/${name}")]))
  # A tag is never moved to another image, so every content has its own.
  tag = "${local.versions}-${substr(local.content, 0, 8)}"
}

resource "aws_ecr_repository" "serving" {
  name                 = "${var.name}/serving"
  image_tag_mutability = "IMMUTABLE"
  image_scanning_configuration {
    scan_on_push = true
  }
  encryption_configuration {
    encryption_type = "KMS"
    kms_key         = aws_kms_key.workshop.arn
  }
}

resource "aws_ecr_lifecycle_policy" "serving" {
  repository = aws_ecr_repository.serving.name
  policy = jsonencode({
    rules = [{
      rulePriority = 1
      description  = "Keep the last 10 images"
      selection    = { tagStatus = "any", countType = "imageCountMoreThan", countNumber = 10 }
      action       = { type = "expire" }
    }]
  })
}

# -- what is built --------------------------------------------------------------------------------

resource "aws_s3_object" "source" {
  for_each = local.files
  bucket   = aws_s3_bucket.this["build"].id
  key      = "image/${each.key}"
  source   = "${local.folder}/${each.key}"
  # etag would be no MD5 under this key
  source_hash = filesha256("${local.folder}/${each.key}")
  depends_on  = [aws_s3_bucket_server_side_encryption_configuration.this]
}

# The last to come: its arrival starts the build, which reads the tag from it.
resource "aws_s3_object" "tag" {
  bucket  = aws_s3_bucket.this["build"].id
  key     = "image/TAG"
  content = local.tag
  depends_on = [
    aws_s3_object.source, aws_cloudwatch_event_target.build, aws_s3_bucket_notification.build,
    aws_iam_role_policy.build, aws_iam_role_policy.trigger,
  ]
}

resource "aws_codebuild_project" "serving" {
  name           = var.name
  description    = "Builds the serving image and pushes it"
  service_role   = aws_iam_role.this["build"].arn
  encryption_key = aws_kms_key.workshop.arn
  build_timeout  = 90 # minutes

  concurrent_build_limit = 1
  artifacts {
    type = "NO_ARTIFACTS"
  }
  source {
    type      = "S3"
    location  = "${aws_s3_bucket.this["build"].id}/image/"
    buildspec = file("${path.module}/buildspec.yaml")
  }
  environment {
    type            = "LINUX_CONTAINER"
    compute_type    = "BUILD_GENERAL1_LARGE" # the layers take 30 GB
    image           = "aws/codebuild/amazonlinux-x86_64-standard:5.0"
    privileged_mode = true # Docker inside the build's container
    environment_variable {
      name  = "REPOSITORY"
      value = aws_ecr_repository.serving.repository_url
    }
    environment_variable {
      name  = "REPOSITORY_NAME"
      value = aws_ecr_repository.serving.name
    }
  }
  logs_config {
    cloudwatch_logs {
      group_name = aws_cloudwatch_log_group.build.name
    }
  }
}

resource "aws_cloudwatch_log_group" "build" {
  name              = "/aws/codebuild/${var.name}"
  retention_in_days = 365
  kms_key_id        = aws_kms_key.workshop.arn
}

# -- what starts it -------------------------------------------------------------------------------

resource "aws_s3_bucket_notification" "build" {
  bucket      = aws_s3_bucket.this["build"].id
  eventbridge = true
}

resource "aws_cloudwatch_event_rule" "build" {
  name        = "${var.name}-build"
  description = "A new source of the serving image has come"
  event_pattern = jsonencode({
    source      = ["aws.s3"]
    detail-type = ["Object Created"]
    detail = {
      bucket = { name = [aws_s3_bucket.this["build"].id] }
      object = { key = ["image/TAG"] }
    }
  })
}

resource "aws_cloudwatch_event_target" "build" {
  rule     = aws_cloudwatch_event_rule.build.name
  arn      = aws_codebuild_project.serving.arn
  role_arn = aws_iam_role.this["trigger"].arn
}
