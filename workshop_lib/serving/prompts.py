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
    prompts: str | Path | Sequence[str],
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
        prompts: A file with one prompt a line, or the prompts themselves.
        results_file: Text file for the answers, with times and token counts.
        max_tokens: Longest answer, tokens.
        on_progress: Called as (done, total, text) after each prompt.

    Returns:
        One row a prompt: `prompt`, `response_time_s`, `prompt_tokens`,
        `completion_tokens`, `tokens_per_s`, `response`, `error`.

    Raises:
        ServerError: The prompts cannot be read, or the server does not answer.

    Example:
        >>> table = run_prompts(server, "data/prompts.txt", "build/results.txt")  # doctest: +SKIP
    """
    import pandas as pd

    texts = read_prompts(prompts) if isinstance(prompts, str | Path) else list(prompts)
    if not texts:
        raise ServerError("run_prompts needs at least one prompt")
    model = server.first_model()
    Path(results_file).parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with Path(results_file).open("w", encoding="utf-8") as out:
        out.write(f"Model {model} at {server.base_url}, {len(texts)} prompts\n")
        for number, prompt in enumerate(texts, start=1):
            row = _prompt_row(server, prompt, model, max_tokens)
            rows.append(row)
            out.write(_prompt_text(number, row))
            out.flush()
            if on_progress is not None:
                done = row["error"] or f"{row['response_time_s']:.1f} s"
                on_progress(number, len(texts), f"{prompt[:40]}: {done}")
    return pd.DataFrame(rows)


def _prompt_row(server: ModelServer, prompt: str, model: str, max_tokens: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "prompt": prompt,
        "response_time_s": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "tokens_per_s": None,
        "response": None,
        "error": None,
    }
    try:
        answer = server.chat(prompt, max_tokens=max_tokens, model=model)
    except ServerError as exc:
        server.health()  # raises if the server is gone: then the rest would fail as well
        return row | {"error": str(exc)}
    return row | {
        "response_time_s": answer.response_time_s,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "tokens_per_s": answer.completion_tokens / answer.response_time_s,
        "response": answer.text,
    }


def _prompt_text(number: int, row: dict[str, Any]) -> str:
    if row["error"]:
        return f"\n[{number}] {row['prompt']}\n    failed: {row['error']}\n"
    counts = f"{row['prompt_tokens']} prompt tokens, {row['completion_tokens']} completion tokens"
    time_and_counts = f"{row['response_time_s']:.2f} s, {counts}"
    return f"\n[{number}] {row['prompt']}\n    {time_and_counts}\n{row['response'].strip()}\n"
