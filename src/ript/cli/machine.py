"""What `ript bench` and `ript doctor` do: speed, and whether this machine is ready."""

from __future__ import annotations

from argparse import Namespace

from ript.cli.answer import Answer
from ript.cli.arguments import asked_fields, configure, saying_what_is_kept


def bench_rollout(args: Namespace) -> Answer:
    from ript.bench.rollout import bench_rollout as measure
    from ript.bench.rollout import describe_rollout

    config = configure(args)
    if config.cluster.used:
        from ript.bench.cluster import bench_cluster, describe_cluster

        with saying_what_is_kept("nothing was measured"):
            document = bench_cluster(config)
        return Answer(text=describe_cluster(document), document=document, costly=True)
    with saying_what_is_kept("nothing was measured"):
        document = measure(config)
    return Answer(text=describe_rollout(document), document=document, costly=True)


def bench_update(args: Namespace) -> Answer:
    from ript.bench.update import bench_update as measure
    from ript.bench.update import describe_update
    from ript.policies.loading import load_policy

    config = configure(args)
    with saying_what_is_kept("nothing was measured"):
        document = measure(config, None if args.policy is None else load_policy(args.policy), asked_fields(args))
    return Answer(text=describe_update(document), document=document, costly=True)


def bench_policy(args: Namespace) -> Answer:
    from ript.bench.policy import bench_policy as measure
    from ript.bench.policy import describe_policy

    document = measure(
        args.size,
        args.batch,
        args.device,
        args.threads,
        args.rows,
        kind=args.kind,
        synthetic=args.synthetic,
        micro_batch=args.micro_batch,
    )
    return Answer(text=describe_policy(document), document=document, costly=True)


def doctor(args: Namespace) -> Answer:
    from ript.cli.doctor import doctor as examine
    from ript.cli.doctor import healthy, to_json, verdict
    from ript.core.registry import suites
    from ript.run.progress import progress

    if args.suite not in suites.names():
        raise suites.unknown(args.suite)

    with progress[object](None, "checking the cluster" if args.cluster else "checking this machine") as bar:
        if args.cluster:
            from ript.cli.doctor_cluster import doctor_cluster

            checks = doctor_cluster(args.cluster, args.suite, on_check=lambda check: bar.advance())
        else:
            checks = examine(suite=args.suite, on_check=lambda check: bar.advance())
    text = "\n".join([*map(str, checks), "", verdict(checks)])
    return Answer(text=text, document=to_json(checks), code=0 if healthy(checks) else 1)
