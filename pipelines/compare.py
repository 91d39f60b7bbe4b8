"""Put two or more runs side by side: which is better, where, and is the difference more than noise?"""

import argparse
import sys
from pathlib import Path

import _paths  # noqa: F401
from post_platform.command import check_folder, run, write_json

SHOWN = ("PQ", "sMOTSA", "MOTSA", "HOTA", "IDF1", "IDS", "STQ", "VPQ", "AP", "J&F", "mIoU")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__ + " Prints a table; the page has all scores, curves, configs and pictures.",
        epilog="example: python pipelines/compare.py first second --out first_and_second.html",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids or names; the others are compared with the first")
    parser.add_argument(
        "--experiment", metavar="E", help="where names are looked up, and the best runs taken from (default: post)"
    )
    parser.add_argument("--top", type=int, metavar="N", help="without RUN: the N best by val/mean/score (default: 4)")
    parser.add_argument("--uri", metavar="URI", help="MLflow's database or server (default: runs/mlflow.db)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare.html"), metavar="PAGE",
                        help="the page (default: %(default)s)")  # fmt: skip
    parser.add_argument("--pictures", type=int, default=2, metavar="N", help="per dataset, in the page (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison, without pictures and curves")
    args = parser.parse_args()
    if len(args.runs) == 1 or (args.runs and args.top is not None) or (args.top is not None and args.top < 2):
        parser.error("give two RUNs or more, or none and --top N of at least 2")
    if args.pictures < 0:
        parser.error("--pictures: give 0 or more")

    from post_platform.atomic import replacing
    from post_platform.comparison import as_json, compare
    from post_platform.comparison_page import page
    from post_platform.errors import PostError
    from post_platform.experiment_reader import ExperimentReader

    reader = ExperimentReader(args.uri, Path("runs"))
    if args.runs:
        chosen = [reader.find(name, args.experiment) for name in args.runs]
    else:
        experiment = args.experiment or "post"
        chosen = reader.best(experiment, args.top or 4)
        if len(chosen) < 2:
            raise PostError(
                f"experiment {experiment!r} has {len(chosen)} runs with scores", "name runs: compare.py A B"
            )
    for flag, file in (("--out", args.out), ("--json", args.json)):
        if file:
            check_folder(file.resolve().parent, flag)
    found = compare(reader, chosen, args.pictures)
    print_comparison(found)
    with replacing(args.out) as file:
        file.write(page(found).encode())
    write_json(args.json, as_json(found))
    print(f"page: {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")


def print_comparison(found) -> None:  # noqa: ANN001
    """Print what the page says, as far as it fits a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from post_platform.comparison_page import class_metric, noise_sources, plain

    console = Console(width=None if sys.stdout.isatty() else 120)

    def table(title: str, columns: list[str], rows: list[list[Text]]) -> None:
        shown = Table(*columns, title=Text(plain(title)), box=SIMPLE_HEAD, title_justify="left")
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in rows:
            shown.add_row(*row)
        console.print(shown)

    letters = [run.letter for run in found.runs]
    heads = [letters[0], *(head for letter in letters[1:] for head in (letter, f"{letter} − {letters[0]}"))]
    for each in found.runs:
        state = f"{each.stored.status.lower()}, step {each.last_step}"
        console.print(Text(plain(f"{each.letter}: {each.stored.name} ({each.stored.run_id}), {state}")))
    for note in found.notes:
        console.print(Text(plain(f"note: {note}"), style="yellow"))
    table("mean of the headline scores", ["", *heads], [cells("val/mean/score", found.mean)])
    for name, rows in found.datasets.items():
        headline = found.headlines[name]
        chosen = [cells(row.metric + "*" * (row.metric == headline), row) for row in rows
                  if not row.native_class and row.metric in {*SHOWN, headline}]  # fmt: skip
        by_class = [row for row in rows if row.native_class]
        metric = class_metric(by_class, headline)
        chosen += [cells(f"{metric} {row.native_class}", row) for row in by_class if row.metric == metric]
        table(f"{name} (* = headline)", ["metric", *heads], chosen)
    console.print(Text("ratios; IDS a count. ▲ better, ▼ worse by more than twice the noise, ≈ less"))
    for line in noise_sources(found):
        console.print(Text(plain(line)))
    for entry in found.ledgers:
        console.print(Text(plain(f"data of {' and '.join(entry['runs'])}: {entry['text']}")))
    config = [[Text(plain(key)), *(Text("–" if v is None else plain(v)) for v in values)]
              for key, values in found.config.items()]  # fmt: skip
    table(f"config: what differs ({found.same_settings} settings do not)", ["", *letters], config)


def cells(title: str, row) -> list:  # noqa: ANN001
    """A row of the terminal's table."""
    from rich.text import Text

    from post_platform.comparison_page import MARKS, number, plain, spread

    colors = {"better": "green", "worse": "red"}
    found = [Text(plain(title)), Text(number(row.metric, row.values[0]))]
    for value, change in zip(row.values[1:], row.differences, strict=True):
        shown = Text("–")
        if change:
            noise = "" if change.noise is None else f" ±{spread(row.metric, change.noise)}"
            mark = MARKS[change.verdict]
            shown = Text(f"{mark} {number(row.metric, change.value, '+')}{noise}".strip(),
                         style=colors.get(change.verdict, ""))  # fmt: skip
        found += [Text(number(row.metric, value)), shown]
    return found


if __name__ == "__main__":
    run(main)
