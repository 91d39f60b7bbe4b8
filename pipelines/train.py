"""Train POST on the mixture of all converted datasets, or resume the run of the same name."""

import argparse
from dataclasses import asdict
from pathlib import Path

import _paths  # noqa: F401
from post_platform.command import run, write_json
from post_platform.config import dump_config, load_config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python pipelines/train.py --config pipelines/configs/toycity.yaml train.steps=500",
    )
    parser.add_argument("--config", type=Path, metavar="F.yaml", help="flat YAML of configuration keys")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome: checkpoint, scores, MLflow run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides, as in the YAML")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(dump_config(config), end="")
        return

    from post_platform.training.launch import train
    from post_platform.training.report import print_scores, training_progress

    with training_progress(config.train.steps) as progress:
        outcome = train(config, progress)
    print_scores(outcome.scores["datasets"])
    print(f"checkpoint: {outcome.checkpoint}\nMLflow: {outcome.mlflow_uri}, run {outcome.mlflow_run_id}")
    write_json(arguments.json, asdict(outcome))


if __name__ == "__main__":
    run(main)
