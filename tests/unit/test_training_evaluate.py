"""Accuracy with its interval, from a folder and from a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from workshop_lib.data import data_path
from workshop_lib.errors import ServerError, WorkshopError
from workshop_lib.serving import ModelServer
from workshop_lib.training.evaluate import (
    Accuracy,
    accuracy_by_level,
    accuracy_table,
    answers_table,
    evaluate_folder,
    evaluate_server,
    wilson_interval,
)
from workshop_lib.training.problems import Problem
from workshop_lib.training.recipe import read_recipe

ARITHMETIC = data_path("recipes/arithmetic.yaml")
PROBLEMS = tuple(Problem(f"1 + {n}", str(n + 1), f"What is 1 + {n}?") for n in range(4))


def result(*completions: str) -> Accuracy:
    rewards = tuple(
        float(text.strip() == problem.answer)
        for problem, text in zip(PROBLEMS, completions, strict=True)
    )
    return Accuracy(PROBLEMS, completions, rewards)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_its_equation() -> None:
    # Its ends are the shares from which the observed one is z standard deviations away.
    for end in wilson_interval(17, 40, confidence=0.9):
        z = abs(17 / 40 - end) / (end * (1 - end) / 40) ** 0.5
        assert z == pytest.approx(1.6449, abs=1e-4)
    with pytest.raises(ValueError):
        wilson_interval(3, 2)
    with pytest.raises(ValueError):
        wilson_interval(0, 0)


def test_the_table_before_and_after() -> None:
    table = accuracy_table({"before": result(" 1", "5", "?", ""), "after": result(*"1234")})
    assert table.index.tolist() == ["before", "after"]
    assert table.right.tolist() == [1, 4] and table.accuracy.tolist() == [0.25, 1.0]
    assert table.low["before"] < 0.25 < table.high["before"]


def test_answers_side_by_side() -> None:
    table = answers_table({"before": result(" 1", "5", "?", ""), "after": result(*"1234")})
    assert table["before right"].tolist() == [True, False, False, False]
    assert table["after"].tolist() == list("1234") and table.answer.tolist() == list("1234")
    other = Accuracy(PROBLEMS[:1], ("1",), (1.0,))
    with pytest.raises(WorkshopError, match="evaluate the same"):
        answers_table({"before": result(*"1234"), "after": other})


class Stub(BaseHTTPRequestHandler):
    """A server that can add, and forgets the sum when a digit is 9."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    broken = False

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "stub", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.bodies.append((self.path, body))
        prompt = body.get("prompt") or body["messages"][-1]["content"]
        a, b = (int(part.strip(" ?\nAnswer:")) for part in prompt.split("is")[1].split("+"))
        text = " I forgot" if 9 in (a, b) else f" {a + b}\nQuestion"
        choice = {"index": 0, "finish_reason": "length", "logprobs": None}
        if self.path == "/v1/completions":
            choice["text"] = text
        else:
            choice["message"] = {"role": "assistant", "content": text}
        self._send(
            {
                "id": "1",
                "object": "completion",
                "created": 0,
                "model": "stub",
                "choices": [] if self.broken else [choice],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )

    def _send(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def stub() -> Iterator[ModelServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Stub.bodies.clear()
    Stub.broken = False
    try:
        with ModelServer(f"http://127.0.0.1:{server.server_port}", timeout_s=300) as client:
            yield client
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_is_asked_the_prompts_as_they_are() -> None:
    done: list[tuple[int, int]] = []
    with stub() as server:
        recipe = read_recipe(ARITHMETIC)
        accuracy = evaluate_server(server, recipe, on_progress=lambda *at: done.append(at))
    assert len(accuracy.problems) == 30 and done[-1] == (30, 30)
    wrong = [p.text for p, r in zip(accuracy.problems, accuracy.rewards, strict=True) if r == 0]
    assert wrong == [p.text for p in accuracy.problems if "9" in p.text] and wrong
    path, body = Stub.bodies[0]
    assert path == "/v1/completions" and body["temperature"] == 0 and body["max_tokens"] == 6
    assert body["model"] == "stub"
    assert {body["prompt"] for _, body in Stub.bodies} == {p.prompt for p in accuracy.problems}


def test_a_server_is_asked_in_chat_where_the_recipe_has_a_template() -> None:
    recipe = read_recipe(ARITHMETIC, {"policy.tokenizer.chat_template": "default"})
    with stub() as server:
        accuracy = evaluate_server(server, recipe, model="other", split="train")
    assert (
        len(accuracy.problems) == 70
        and accuracy.right
        == 53 + sum("9" not in problem.text for problem in accuracy.problems) - 53
    )
    assert {path for path, _ in Stub.bodies} == {"/v1/chat/completions"}
    assert Stub.bodies[0][1]["model"] == "other"


def test_a_server_that_is_not_there_or_sends_nothing() -> None:
    recipe = read_recipe(ARITHMETIC)
    with stub() as server:
        Stub.broken = True
        with pytest.raises(ServerError, match="without text"):
            evaluate_server(server, recipe, problems=PROBLEMS[:1])
    with pytest.raises(ServerError, match="no server at"):
        evaluate_server(server, recipe)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    recipe = read_recipe(ARITHMETIC)
    with pytest.raises(WorkshopError, match=r"cannot evaluate: .* has no config.json"):
        evaluate_folder(tmp_path, recipe)
    with stub() as server, pytest.raises(WorkshopError, match="no problem to evaluate"):
        evaluate_server(server, recipe, problems=[])


def test_accuracy_by_level() -> None:
    problems = [Problem(f"{n}", "2", f"{n}?", level=1 + n % 2) for n in range(6)]
    rewards = (1.0, 0.0, 1.0, 0.0, 0.0, 1.0)
    result = Accuracy(tuple(problems), tuple(" x" for _ in problems), rewards)
    table = accuracy_by_level({"before": result, "after": result})
    assert table.loc[(1, "before"), "right"] == 2 and table.loc[(2, "after"), "right"] == 1
    assert table["problems"].tolist() == [3] * 4
    low, high = wilson_interval(2, 3)
    assert table.loc[(1, "after"), ["low", "high"]].tolist() == [low, high]
