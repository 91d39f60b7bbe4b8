"""Register a run's best checkpoint in MLflow as the next version of a model, ready for `mlflow models serve`."""

import argparse
from dataclasses import asdict
from pathlib import Path

import _paths  # noqa: F401
from post_platform.command import run, write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__ + " The model carries weights, code and the versions that it needs.",
        epilog="example: python pipelines/register.py first --name street",
    )
    parser.add_argument(
        "run", metavar="RUN", help="id, name or folder; RUN_FOLDER/latest or a checkpoint, if not the best"
    )
    parser.add_argument("--name", required=True, metavar="NAME", help="of the model; a new one, or its next version")
    parser.add_argument("--alias", default="champion", help="that means this version from now on (default: champion)")
    parser.add_argument("--experiment", metavar="E", help="where a run's name is looked up (default: in all)")
    parser.add_argument(
        "--uri", metavar="URI", help="MLflow's database or server (default: a folder's own, else runs/mlflow.db)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was registered")
    options = parser.parse_args()

    from post_platform.experiment_registry import candidate, register

    found = candidate(options.run, options.uri, options.experiment)
    made = register(found, options.name, options.alias)
    write_json(options.json, {**asdict(found), **asdict(made)})
    score = "not validated" if found.score is None else f"mean score {found.score:.4f}"
    print(f"{made.name} version {made.version}: {found.place}, step {found.step}, {score}")
    print("serve it:")
    print(f"  export MLFLOW_TRACKING_URI={found.uri}")
    print(f"  mlflow models serve -m models:/{made.name}@{made.alias} --env-manager local --port 5001")


if __name__ == "__main__":
    run(main)
