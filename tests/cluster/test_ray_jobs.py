"""Ray jobs through the dashboard: what is submitted, and what is stopped."""

import pytest
import ray.job_submission

from workshop_lib.cluster import ray as ray_module
from workshop_lib.cluster.ray import RayDashboard
from workshop_lib.errors import ClusterError

PENDING, SUCCEEDED = ray.job_submission.JobStatus.PENDING, ray.job_submission.JobStatus.SUCCEEDED


class Client:
    """Ray's client; the last answer is given again and again."""

    def __init__(self, url, headers):
        self.entrypoint, self.stopped = "", []

    def submit_job(self, *, entrypoint, runtime_env):
        self.entrypoint = entrypoint
        return "job"

    def get_job_status(self, job_id):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def get_job_logs(self, job_id):
        return '{"a": 1}\n'

    def stop_job(self, job_id):
        self.stopped.append(job_id)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a script; the client gives these answers about it."""
    script = tmp_path / "a script.py"
    script.touch()

    def start(*arguments, answers):
        client = Client("", {})
        client.answers = answers
        monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", lambda *a, **k: client)
        try:
            result = RayDashboard("http://127.0.0.1:1", "token").run(
                script, *arguments, timeout_s=60
            )
        except (ClusterError, KeyboardInterrupt) as error:
            return client, error
        return client, result.json()

    return start


def test_arguments_arrive_as_they_are_and_a_lost_poll_is_asked_again(run):
    lost = [RuntimeError("no answer"), ConnectionError("reset")]
    client, found = run("two words", "$HOME", answers=[PENDING, *lost, SUCCEEDED])
    assert found == {"a": 1} and client.stopped == []
    assert client.entrypoint == "python 'a script.py' 'two words' '$HOME'"


def test_a_job_that_nobody_waits_for_is_stopped(run, monkeypatch):
    client, error = run(answers=[PENDING, KeyboardInterrupt()])
    assert isinstance(error, KeyboardInterrupt) and client.stopped == ["job"]
    monkeypatch.setattr(ray_module, "SILENT_S", 0.5)
    client, error = run(answers=[RuntimeError("connection refused")])
    assert isinstance(error, ClusterError) and client.stopped == ["job"]
    assert "connection refused) for 0.5 s; is the head still" in str(error)
