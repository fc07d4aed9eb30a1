# What an administrator makes once for an account: a repository with the serving image, which AWS
# builds itself, a bucket for models, and the identities of the pods that fill and read it.
#   terraform init && terraform apply -var cluster_name=my-cluster
# The cluster is there already; see the README for what it needs.
terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

provider "aws" {
  region = var.region
  default_tags {
    tags = { "app.kubernetes.io/part-of" = "ray-vllm-workshop" }
  }
}

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
}
