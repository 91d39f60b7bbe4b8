"""Ask what the claims rest on: leave one dataset out, one for all, balance, label sets, tracking; or resume that."""

import argparse
from pathlib import Path

import _paths  # noqa: F401
from post_platform.command import check_folder, run, write_json
from post_platform.study_config import load_study


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python pipelines/study.py --config pipelines/configs/toystudy.yaml study.parts=[balance]",
    )
    parser.add_argument("--config", type=Path, metavar="F.yaml", help="flat YAML: keys of a training, and study.*")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables, with the scores of every seed")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides, as in the YAML")
    arguments = parser.parse_intermixed_args()
    config, settings = load_study(arguments.config, arguments.overrides)
    if arguments.json:
        check_folder(arguments.json.resolve().parent, "--json")

    from post_platform.study import Run, study
    from post_platform.study_report import as_json, markdown, tables

    def told(done: Run) -> None:
        ways = ", ".join(done.scores)
        what = f"{done.state} in {done.seconds:.0f} s" + (f", scored with {ways}" if ways else "")
        print(f"{done.name}: {what}" + (f": {done.reason}" if done.reason else ""), flush=True)

    found, uri = study(config, settings, told)
    print("\n" + markdown(tables(found), found))
    print(f"tables, figure and pictures: {found.folder}\nMLflow: {uri}, run {found.run_id}")
    write_json(arguments.json, as_json(found) | {"mlflow_uri": uri, "mlflow_run_id": found.run_id})


if __name__ == "__main__":
    run(main)
