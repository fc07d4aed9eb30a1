variable "region" {
  description = "Where the cluster is: a bucket elsewhere costs time and money for every byte."
  type        = string
  default     = "us-east-1"
}

variable "name" {
  description = "What names begin with, so that two installations fit into one account."
  type        = string
  default     = "ray-vllm-workshop"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,30}$", var.name))
    error_message = "The name is 3 to 31 lower-case letters, digits and '-', a letter first."
  }
}

variable "cluster_name" {
  description = "The EKS cluster whose pods get identities."
  type        = string
}

variable "namespaces" {
  description = "The learners' namespaces: their pods may read models."
  type        = set(string)
  default     = ["workshop"]
}

variable "prestage_namespaces" {
  description = "The namespaces whose Job `prestage` may write models; best one, the instructor's."
  type        = set(string)
  default     = ["workshop"]
}

variable "models_prefix" {
  description = "The folder in the bucket under which models lie; the parameter `prefix` of prestage and ray-service-s3."
  type        = string
  default     = "models"
  validation {
    condition     = can(regex("^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", var.models_prefix))
    error_message = "The prefix is names of letters, digits, '_' and '-' with '/' between them."
  }
}

variable "addons" {
  description = "EKS add-ons to install, if the cluster lacks them: eks-pod-identity-agent, aws-mountpoint-s3-csi-driver."
  type        = set(string)
  default     = []
}
