"""The prompts client: a file of prompts in, a file of answers and a table out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import ServerError

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.serving.client import ModelServer

__all__ = ["read_prompts", "run_prompts"]


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a file: one a line; blank lines and lines that start with `#` are left out.

    Args:
        path: The file.

    Raises:
        ServerError: The file cannot be read, or holds no prompt.

    Example:
        >>> from workshop_lib.data import data_path
        >>> len(read_prompts(data_path("prompts.txt")))
        20
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ServerError(f"the prompts file {path} cannot be read: {exc}") from exc
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts:
        raise ServerError(f"the prompts file {path} holds no prompt; write one a line")
    return prompts


def run_prompts(
    server: ModelServer,
    prompts: Sequence[str],
    results_file: str | Path,
    *,
    max_tokens: int = 128,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> pd.DataFrame:
    """Send prompts one after the other and keep the answers.

    `results_file` is written while the prompts run, so a run that is stopped
    leaves what it has. A prompt that the server refuses becomes a row with its
    error; a server that is gone ends the run.

    Args:
        server: Where to send them.
        prompts: The prompts; `read_prompts` reads a file of them.
        results_file: Text file for the answers, with times and token counts.
        max_tokens: Longest answer, tokens.
        on_progress: Called as (done, total, text) after each prompt.

    Returns:
        One row a prompt: `prompt`, `response_time_s`, `prompt_tokens`,
        `completion_tokens`, `tokens_per_s`, `response`, `error`.

    Raises:
        ServerError: There is no prompt, or the server does not answer.

    Example:
        >>> table = run_prompts(server, ["What is a GPU?"], "build/results.txt")  # doctest: +SKIP
    """
    import pandas as pd

    if not prompts:
        raise ServerError("run_prompts needs at least one prompt")
    model = server.first_model()
    Path(results_file).parent.mkdir(parents=True, exist_ok=True)
    columns = ["prompt", "response_time_s", "prompt_tokens", "completion_tokens"]
    columns += ["tokens_per_s", "response", "error"]
    rows: list[dict[str, Any]] = []
    with Path(results_file).open("w", encoding="utf-8") as out:
        out.write(f"Model {model} at {server.base_url}, {len(prompts)} prompts\n")
        for number, prompt in enumerate(prompts, start=1):
            row: dict[str, Any] = {"prompt": prompt}
            try:
                answer = server.chat(prompt, max_tokens=max_tokens, model=model)
            except ServerError as exc:
                server.health()  # raises if the server is gone: then the rest would fail as well
                row["error"], said = str(exc), f"failed: {exc}"
            else:
                row["response_time_s"] = answer.response_time_s
                row["prompt_tokens"] = answer.prompt_tokens
                row["completion_tokens"] = answer.completion_tokens
                row["tokens_per_s"] = answer.completion_tokens / answer.response_time_s
                row["response"] = answer.text
                said = (
                    f"{answer.response_time_s:.2f} s, {answer.prompt_tokens} prompt tokens, "
                    f"{answer.completion_tokens} completion tokens\n{answer.text.strip()}"
                )
            rows.append(row)
            out.write(f"\n[{number}] {prompt}\n    {said}\n")
            out.flush()
            if on_progress is not None:
                done = row.get("error") or f"{row['response_time_s']:.1f} s"
                on_progress(number, len(prompts), f"{prompt[:40]}: {done}")
    return pd.DataFrame(rows, columns=columns)
