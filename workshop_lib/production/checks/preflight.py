"""Preflight: everything that the workshop needs, looked at in seconds, each with its fix.

Two halves: this machine (`laptop`), and the cluster behind the profile, which answers for
itself (`cluster.prerequisites()`). Nothing is changed and nothing is started.

`python -m workshop_lib.production.checks.preflight --profile eks` prints it, ends with 1 when
something fails; what cannot be told does not fail it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from workshop_lib.checklist import CheckList
from workshop_lib.cluster.base import Cluster, connect
from workshop_lib.errors import WorkshopError
from workshop_lib.production.checks.laptop import check_laptop

__all__ = ["main", "preflight"]


def preflight(cluster: Cluster) -> CheckList:
    """Everything that the workshop needs of this machine and of a cluster.

    Args:
        cluster: Where the components will run.

    Returns:
        The checks, this machine's first.

    Example:
        >>> preflight(connect("local")).passed        # doctest: +SKIP
        True
    """
    return CheckList([*check_laptop(), *cluster.prerequisites()])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the checks.

    Args:
        arguments: The command line; default: the process's.

    Returns:
        0 when nothing failed, 1 when something did, 2 when a cluster cannot be reached.
    """
    parser = argparse.ArgumentParser(
        prog="python -m workshop_lib.production.checks.preflight",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument("--profile", default="local", help="local (default), eks or kind")
    parser.add_argument("--namespace", help="the learner's namespace")
    parser.add_argument("--context", help="a context of the kubeconfig")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    try:
        cluster = connect(options.profile, namespace=options.namespace, context=options.context)
        checks = preflight(cluster)
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 2
    failed = [check for check in checks if check.outcome == "fail"]
    if options.json:
        for check in checks:
            print(json.dumps({"name": check.name, "outcome": check.outcome,
                              "evidence": check.evidence, "fix": check.fix}))  # fmt: skip
    else:
        print(checks)
        unknown = sum(check.outcome == "cannot tell" for check in checks)
        print(f"\n{len(checks)} checks: {len(failed)} failed, {unknown} cannot be told")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
