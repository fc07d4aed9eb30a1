"""What logs say of vLLM and of models.

Wordings: vLLM 0.25 to 0.32 (`v1/core/kv_cache_utils.py`, `config/`, `v1/executor/`), transformers
5, huggingface_hub (`errors.py`), safetensors.
"""

from __future__ import annotations

from workshop_lib.production.diagnosis.cause import Lesson
from workshop_lib.production.diagnosis.logs import Sign

__all__ = ["MODEL_SIGNS", "VLLM_SIGNS"]

VLLM_SIGNS: tuple[Sign, ...] = (
    Sign(
        "kv-cache-too-small",
        (
            "to serve at least one request",
            "maximum number of tokens that can be stored in kv cache",
        ),
        r"To serve at least one request|larger than the maximum number of tokens that can be "
        r"stored in KV cache",
        "The memory left for the KV cache does not hold even one request of max_model_len tokens.",
        "lower max_model_len (the line may say how far), raise gpu_memory_utilization (on a CPU "
        "VLLM_CPU_KVCACHE_SPACE), or use more GPUs (tensor_parallel_size)",
        Lesson.VLLM_MEMORY,
    ),
    Sign(
        "no-kv-cache",
        ("no available memory for the cache blocks", "not enough memory for the kv"),
        r"No available memory for the cache blocks|not enough memory for the KV",
        "After the weights nothing is left for the KV cache.",
        "raise gpu_memory_utilization, use more or larger GPUs (tensor_parallel_size), or a "
        "smaller or quantized model",
        Lesson.VLLM_MEMORY,
    ),
    Sign(
        "cpu-kv-too-large",
        ("vllm_cpu_kvcache_space",),
        r"Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE|"
        r"VLLM_CPU_KVCACHE_SPACE.*(?:exceed"
        r"|larger|too|not enough)",
        "The KV cache that {who} asks for is larger than the machine's free memory.",
        "lower VLLM_CPU_KVCACHE_SPACE (GiB), or free memory",
        Lesson.VLLM_MEMORY,
    ),
    Sign(
        "model-len-too-large",
        ("greater than the derived max_model_len",),
        r"max_model_len \(?(?P<asked>\d+)?.*greater than the derived max_model_len",
        "max_model_len is longer than the context that the model was made for.",
        "lower --max-model-len to what config.json says (max_position_embeddings)",
        Lesson.VLLM_MEMORY,
    ),
    Sign(
        "tp-not-divisible",
        ("must be divisible by tensor parallel", "divisible by tensor", "is not divisible by"),
        r"must be divisible by (?:the )?tensor[ _]parallel|(?:heads|hidden|intermediate|vocab)\w*"
        r".{0,60}is not divisible by",
        "tensor_parallel_size does not divide the model's attention heads: each GPU must get as "
        "many heads as the others.",
        "choose a tensor_parallel_size that divides num_attention_heads in config.json (and "
        "num_key_value_heads, or the reverse)",
        Lesson.VLLM_MEMORY,
    ),
    Sign(
        "tp-too-large",
        (
            "number of available gpus",
            "exceeds the total number",
            "exceeds the total",
            "larger than the number of available",
        ),
        r"(?:World size|Tensor parallel size).{0,60}(?:larger|greater|exceed).{0,40}available GPUs|"
        r"number of required \w+ exceeds the total",
        "The model server wants more GPUs (tensor_parallel_size x pipeline_parallel_size) than "
        "its pod or Ray cluster has.",
        "lower tensor_parallel_size, or raise nvidia.com/gpu in the pod's limits; with Ray, add "
        "workers",
        Lesson.RAY_GPUS,
    ),
    Sign(
        "vllm-ray-executor",
        ("current node has no gpu available",),
        r"Current node has no GPU available",
        "vLLM's engine looks for a GPU on the Ray node where it starts, and that node has none "
        "left: it was started on the head, or its placement group was lost on the way.",
        "serve with ray.serve.llm (build_openai_app), which makes the placement group itself; in "
        "a deployment of your own give the actor the GPUs (num_gpus) and use the mp executor",
        Lesson.VLLM_SERVE,
    ),
    Sign(
        "mp-executor-refused",
        ("distributed_executor_backend",),
        r"distributed_executor_backend.*(?:mp|must be|not supported|only)",
        "ray.serve.llm refuses this distributed_executor_backend on GPUs.",
        "take distributed_executor_backend out of engine_kwargs: the Ray executor is the right "
        "one there",
        Lesson.VLLM_SERVE,
    ),
    Sign(
        "trust-remote-code",
        ("trust_remote_code", "custom code which must be executed"),
        r"trust_remote_code=True|contains custom code which must be executed",
        "The model brings Python code of its own, which vLLM runs only when it is told to trust "
        "it.",
        "read that code, then add --trust-remote-code",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "model-unsupported",
        (
            "are not supported for now",
            "does not recognize this architecture",
            "no supported config format",
            "has no vllm implementation",
        ),
        r"Model architectures? .*not supported|does not recognize this architecture|has no vLLM "
        r"implementation|No supported config format",
        "This version of vLLM or transformers does not know the model's architecture.",
        "use a newer image, or a model from vLLM's list of supported models",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "vllm-arguments",
        (
            "unrecognized arguments",
            "invalid choice",
            "expected one argument",
            "arguments are required",
            "error: argument",
        ),
        r"error: (?P<what>(?:unrecognized arguments|argument \S+: |the following arguments).*)",
        "The command line of {who} is wrong: {what}.",
        "correct args: in the manifest; --help lists what there is",
        Lesson.VLLM_DEPLOY,
    ),
    Sign(
        "quantization",
        ("quantization method", "minimum capability"),
        r"quantization method .*(?:is not supported for the current GPU|does not match)|"
        r"Unknown quantization method",
        "The model's quantization does not fit: this GPU does not support it, or --quantization "
        "names another one than the model has.",
        "take --quantization out (vLLM reads it from config.json), or use a model or a GPU "
        "generation that go together (FP8 from Ada and Hopper on)",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "lora",
        ("lora",),
        r"Loading lora .*failed|No adapter found for|LoRA rank \d+ is greater than max_lora_rank|"
        r"does not support LoRA|adapter_config\.json",
        "The server in {who} cannot load a LoRA adapter: its folder is not there, or it is larger "
        "than the server was told.",
        "check the path in --lora-modules (a folder with adapter_config.json), and that "
        "--max-lora-rank is at least the adapter's rank",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "chat-template",
        ("chat template",),
        r"supplied chat template.*doesn't exist",
        "The chat template that {who} is told to use is not there.",
        "mount the file and correct --chat-template, or take it out: models for chat bring their "
        "own",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "hf-rate-limit",
        ("429 client error",),
        r"429 Client Error",
        "Hugging Face answers {who} that too many requests came from here.",
        "fetch the model once into the shared volume (cluster.apply('model')), pass a token "
        "(HF_TOKEN), and let pods start one after the other",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "hf-gated",
        (
            "gated repo",
            "access to model",
            "403 client error",
            "gatedrepoerror",
            "awaiting a review",
            "is restricted",
        ),
        r"gated repo|GatedRepoError|Access to model .* is restricted|403 Client Error.*huggingface|"
        r"awaiting a review from the repo authors",
        "The model is gated: its licence must be accepted on Hugging Face, and the token must "
        "belong to the account that did.",
        "accept it on the model's page, and give the pod that account's token from a Secret "
        "(HF_TOKEN); or use a model that is open",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "hf-unauthorized",
        ("401 client error", "invalid user token", "invalid username or password"),
        r"401 Client Error|Invalid user token|Invalid username or password",
        "Hugging Face refuses the request of {who}: there is no token, it is wrong, or the model's "
        "name is (a private model and one that does not exist answer alike).",
        "check the model's name; for a private one put a token into a Secret and pass it as "
        "HF_TOKEN",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "model-not-found",
        (
            "repository not found",
            "is not a valid model identifier",
            "repositorynotfounderror",
            "404 client error",
            "incorrect path_or_model",
            "hfvalidationerror",
            "repo id must",
            "invalid repository id",
            "revisionnotfound",
            "nosuchkey",
            "does not appear to have a file named",
            "invalid model path",
            "put it there with",
        ),
        r"Repository Not Found|RepositoryNotFoundError|not a valid model identifier|Incorrect "
        r"path_or_model_id|HFValidationError|Repo id must|Invalid repository ID|RevisionNotFound|"
        r"404 Client Error.*huggingface|NoSuchKey|does not appear to have a file named|"
        r"Invalid model path|^model \S+ is not at|put it there with cluster\.apply",
        "{who} cannot find its model: there is none of that name on Hugging Face, and no such "
        "folder in the pod.",
        "correct --model (organisation/name, or a folder that is mounted), or apply the component "
        "that fetches it: cluster.apply('model')",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "model-unreadable",
        (
            "unrecognized model in",
            "headertoolarge",
            "metadataincompletebuffer",
            "error while deserializing header",
            "no safetensors",
            "cannot find any model weights",
            "unable to load weights",
            "invalidheader",
            "can't load the configuration",
            "can't load tokenizer",
        ),
        r"Unrecognized model in|SafetensorError|HeaderTooLarge|IncompleteBuffer|deserializing "
        r"header|Cannot find any model weights|Unable to load weights|No safetensors|"
        r"Can't load (?:the )?(?:configuration|tokenizer)",
        "There is something in the model's folder, but not a whole model: config.json or weights "
        "are missing, cut off or of a kind that is not known.",
        "look into the folder (ls -l); fetch the model again, whole (cluster.apply('model')), and "
        "check that the path ends at the folder with config.json",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "model-download",
        ("huggingface.co", "hf.co"),
        r"(?:NameResolutionError|Failed to resolve|Name or service not known|name resolution"
        r"|getaddrinfo).*(?:huggingface\.co|hf\.co)|(?:huggingface\.co|hf\.co).*"
        r"(?:NameResolutionError|Failed to resolve|Name or service not known|name resolution)",
        "{who} cannot download its model: DNS in the pod has no answer for Hugging Face's name.",
        "kubectl exec into the pod: getent hosts huggingface.co; a NetworkPolicy must let port 53 "
        "(UDP and TCP) through; or fetch the model once into the shared volume beforehand "
        "(cluster.apply('model')) and serve it from that folder",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "model-download",
        (
            "huggingface.co",
            "localentrynotfound",
            "couldn't connect to",
            "hf_hub_offline",
            "offline mode",
            "hf.co",
            "xethub",
        ),
        r"couldn't connect to .*huggingface|LocalEntryNotFound|"
        r"huggingface\.co.*(?:Max retries|timed"
        r" ?out|Failed to|resolve)|(?:Max retries|Read timed out|ConnectTimeout|ConnectionError)"
        r".*(?:huggingface|hf\.co|xethub)|offline mode is enabled|"
        r"outgoing traffic has been disabled|CAS service error|"
        r"error sending request for url \(https://[\w.-]*(?:huggingface\.co|hf\.co)",
        "{who} cannot download its model: Hugging Face is out of reach from the pod, or too slow.",
        "fetch the model once into the shared volume beforehand (cluster.apply('model')) and "
        "serve it from that folder; check egress (NetworkPolicy, NAT gateway)",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "s3-denied",
        (
            "accessdenied",
            "unable to locate credentials",
            "nocredentialserror",
            "invalidaccesskeyid",
            "expiredtoken",
        ),
        r"AccessDenied|Unable to locate credentials|NoCredentialsError|InvalidAccessKeyId|"
        r"ExpiredToken",
        "AWS refuses {who}: its pod has no role, or one without the right to this.",
        "give the pod's service account a role (Pod Identity association) that allows the action "
        "in the line",
        Lesson.WHEN,
    ),
)

MODEL_SIGNS: tuple[Sign, ...] = (
    Sign(
        "engine-dead",
        (
            "engine core initialization failed",
            "enginedeaderror",
            "enginecore",
            "engine core proc",
            "engine process failed",
            "engine is dead",
            "engine loop",
        ),
        r"Engine core initialization failed|EngineDeadError|EngineCore (?:encountered|died|failed)|"
        r"Engine core proc\w* .*died|Engine process failed|the engine is dead|"
        r"Engine loop (?:is not "
        r"running|has died)",
        "The model server's engine process died; the front in {who} can only say so.",
        "look further up in the log for the engine's first error (kubectl logs <pod> --previous | "
        "grep -m1 -B2 -A20 Traceback); a liveness probe on /health lets Kubernetes restart it",
        Lesson.VLLM_WHEN,
        running=True,
        vague=True,
    ),
)
