"""Real Ray Serve: replicas follow the load, a killed one is replaced, CPUs are the limit."""

import pytest
from local_helpers import container_status, until

from workshop_lib.errors import ClusterError
from workshop_lib.production.autoscaling import run, run_load, run_recovery, serve_app

SETTLE_S = 300

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def test_a_service_that_scales(new_cluster):
    cluster = new_cluster(restart_backoff_s=0.5)
    service = cluster.apply("autoscale").wait_ready(timeout_s=600)
    with serve_app(service) as app:
        assert app.dashboard.status_without_token() == 401
        first = app.snapshot()
        assert first.settled(1) and app.ask(3)["replica"] == first.running[0].replica_id
        # Ray's page of metrics has the autoscaler's numbers after a moment.
        until(lambda: "counted_requests" in app.gauges(), timeout_s=120, every_s=0.5)
        seen = run_load(app, [(1, 1), (6, 1), (1, 1)], hold_s=2, settle_timeout_s=SETTLE_S)
        assert seen.phases["replicas"].tolist() == [1, 3, 1], seen.samples.to_string()
        assert seen.phases["settled"].all() and seen.samples["in_flight"].max() <= 6
        assert seen.samples["counted_requests"].max() > 2
        more_than_fits(cluster, app)
        one_of_one(cluster, app)
        with pytest.raises(ClusterError, match="is no replica of Serve"):
            run._kill(service, first.running[0])  # it was killed or stopped long ago
    assert container_status(service)["restartCount"] == 0, "the head went on"


def more_than_fits(cluster, app):
    """The node has four CPUs: a fifth replica waits, and the run says that it did not come."""
    head = cluster.get("autoscale").pods[0]
    cluster.apply("autoscale", max_replicas=6, target_ongoing_requests=1)
    seen = app.wait_settings(max_replicas=6, target_ongoing_requests=1, timeout_s=SETTLE_S)
    assert len(seen.running) >= 1, "a changed setting stops no replica"
    assert cluster.get("autoscale").pods == [head], "nor does it start a new head"
    seen = run_load(app, [(6, 1)], hold_s=0, settle_timeout_s=60)
    assert seen.phases[["predicted", "settled"]].values.tolist() == [[6, False]]
    assert seen.samples["running"].max() <= 4 and seen.samples["target"].max() == 6


def one_of_one(cluster, app):
    """The only replica dies: nobody answers until the next one runs."""
    service = cluster.apply("autoscale", max_replicas=1)
    app.wait_settings(max_replicas=1, timeout_s=SETTLE_S)
    killed = app.wait_settled(1, timeout_s=SETTLE_S).running[0].replica_id
    options = {"before_s": 2, "attempts": 1, "timeout_s": SETTLE_S}
    recovery = run_recovery(service, app, users=2, replicas=1, **options)
    assert recovery.recovered_s is not None
    assert recovery.run.counts()["lost_requests"] >= 1, "what it was working on is lost"
    assert killed not in [each.replica_id for each in app.snapshot().running]
