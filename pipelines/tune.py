"""Search the loss weights that are best on all datasets together, or resume the search of the same name."""

import argparse
from dataclasses import asdict
from pathlib import Path

import _paths  # noqa: F401
from post_platform.command import check_folder, run, write_json
from post_platform.search_config import load_search


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python pipelines/tune.py --config pipelines/configs/toysearch.yaml search.trials=20",
    )
    parser.add_argument("--config", type=Path, metavar="F.yaml", help="flat YAML: keys of a training, and search.*")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdict and all trials")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides, as in the YAML")
    arguments = parser.parse_intermixed_args()
    config, settings = load_search(arguments.config, arguments.overrides)
    if arguments.json:
        check_folder(arguments.json.resolve().parent, "--json")

    from post_platform.search import Trial, search
    from post_platform.search_report import verdict

    def told(trial: Trial) -> None:
        weights = ", ".join(f"{name} {weight:.3g}" for name, weight in trial.weights.items())
        score = "-" if trial.score is None else f"{trial.score:.4f}"
        line = f"{trial.name} ({weights}): {score} at step {trial.step}, {trial.state}"
        print(line + (f": {trial.reason}" if trial.reason else ""), flush=True)

    sweep, uri = search(config, settings, told)
    found = verdict(sweep.trials)
    print(f"\n{found}")
    print(f"table and figures: {sweep.folder}\nMLflow: {uri}, run {sweep.run_id}")
    print(f"\nnext:\n  train the best recipe   python pipelines/train.py --config {sweep.folder / 'best.yaml'}")
    result = {"verdict": asdict(found), "beats": found.beats, "trials": [asdict(trial) for trial in sweep.trials]}
    write_json(arguments.json, result | {"mlflow_uri": uri, "mlflow_run_id": sweep.run_id})


if __name__ == "__main__":
    run(main)
