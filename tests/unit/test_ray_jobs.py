"""Ray jobs through the dashboard: what is submitted, and what is stopped."""

from types import SimpleNamespace

import pytest
import ray.job_submission

from workshop_lib.cluster import ray as ray_module
from workshop_lib.cluster.ray import RayDashboard
from workshop_lib.errors import ClusterError

PENDING, SUCCEEDED = ray.job_submission.JobStatus.PENDING, ray.job_submission.JobStatus.SUCCEEDED


@pytest.fixture
def jobs(monkeypatch):
    """Ray's client, which is told what each question is answered with."""
    seen = SimpleNamespace(entrypoint="", stopped=[], answers=[])

    class Client:
        def __init__(self, url, headers):
            pass

        def submit_job(self, *, entrypoint, runtime_env):
            seen.entrypoint = entrypoint
            return "job"

        def get_job_status(self, job_id):
            answer = seen.answers.pop(0) if len(seen.answers) > 1 else seen.answers[0]
            if isinstance(answer, BaseException):
                raise answer
            return answer

        def get_job_logs(self, job_id):
            return '{"a": 1}\n'

        def stop_job(self, job_id):
            seen.stopped.append(job_id)

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", Client)
    return seen


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "a script.py"
    path.touch()
    return path


def run(script, *arguments):
    return RayDashboard("http://127.0.0.1:1", "token").run(script, *arguments, timeout_s=60)


def test_arguments_arrive_as_they_are_and_a_lost_poll_is_asked_again(jobs, script):
    jobs.answers = [PENDING, RuntimeError("no answer"), ConnectionError("reset"), SUCCEEDED]
    assert run(script, "two words", "$HOME").json() == {"a": 1}
    assert jobs.entrypoint == "python 'a script.py' 'two words' '$HOME'" and jobs.stopped == []


def test_who_interrupts_stops_the_job(jobs, script):
    jobs.answers = [PENDING, KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        run(script)
    assert jobs.stopped == ["job"]


def test_a_dashboard_that_stays_silent_is_given_up(jobs, script, monkeypatch):
    monkeypatch.setattr(ray_module, "SILENT_S", 0.5)
    jobs.answers = [RuntimeError("connection refused")]
    with pytest.raises(ClusterError, match=r"connection refused\) for 0.5 s; is the head still"):
        run(script)
    assert jobs.stopped == ["job"]
