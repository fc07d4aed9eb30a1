output "models_bucket" {
  description = "The parameter `bucket` of prestage and ray-service-s3."
  value       = aws_s3_bucket.this["models"].id
}

output "prestage_role" {
  description = "The parameter `role` of prestage."
  value       = aws_iam_role.this["prestage"].name
}

output "image" {
  description = "The parameter `image` of ray-service and ray-service-s3, once the build is done."
  value       = "${aws_ecr_repository.serving.repository_url}:${local.tag}"
}

output "look_at_the_build" {
  description = "How the build goes."
  value       = "aws codebuild list-builds-for-project --project-name ${aws_codebuild_project.serving.name}"
}
