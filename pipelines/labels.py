"""Print a label contract, or the conflicts between several."""

import argparse

import _paths  # noqa: F401
from post_platform.command import run, write_json
from post_platform.errors import ConfigError
from post_platform.labels import Contract, available, load_contract
from post_platform.labels.conflicts import Conflicts, find_conflicts


def main() -> None:
    parser = argparse.ArgumentParser(
        description="One dataset: its native classes and what each may stand for. Several: where their labels differ.",
        epilog="example: python pipelines/labels.py kitti_mots kitti_step coco_panoptic",
    )
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help=", ".join(available()))
    parser.add_argument("--json", metavar="FILE", help="write the same as JSON")
    options = parser.parse_args()
    contracts = [load_contract(name) for name in options.datasets]
    if len(set(options.datasets)) < len(options.datasets):
        raise ConfigError("a dataset is named twice")
    if len(contracts) == 1:
        print_contract(contracts[0])
        content = contracts[0].model_dump(mode="json", by_alias=True)
    else:
        conflicts = find_conflicts(contracts)
        print_conflicts([contract.dataset for contract in contracts], conflicts)
        content = conflicts.as_dict()
    write_json(options.json, content)


def print_contract(contract: Contract) -> None:
    ids = "persist over a sequence" if contract.persistent else "hold for one image"
    print(f"{contract.dataset}: {len(contract.classes)} classes, score {contract.headline}, instance ids {ids}")
    print(f"  native: {contract.native}\n  labelled: {contract.labelled}")
    if contract.background is None:
        print("  0: a class like any other; 255: void, every class allowed")
    elif contract.background.policy == "void":
        print("  0: unknown, every class allowed; 255: void, every class allowed")
    else:
        print(f"  0: any class but {', '.join(contract.background.excludes)}; 255: void, every class allowed")
    if codes := contract.ignore_codes():
        print(f"  {min(codes)}..{max(codes)}: regions where objects of every class, or of one, are not judged; as void")
    width = max(len(native.name) for native in contract.classes)
    for native in contract.classes:
        kind = "thing" if native.has_instances else "thing without instances" if native.isthing else "stuff"
        also = f"; also perhaps {', '.join(native.also)}" if native.also else ""
        print(f"  {native.id:3d}  {native.name:{width}s}  {kind:5s}  {', '.join(native.unified)}{also}")


def print_conflicts(names: list[str], conflicts: Conflicts) -> None:
    print(f"{', '.join(names)}: {conflicts.covered} unified classes are primary somewhere")
    counts = conflicts.matrix
    width = max(map(len, names))
    print("\nconflict matrix (classes with other sets / thing against stuff):")
    print(" " * (width + 2) + "  ".join(f"{name:>{width}s}" for name in names))
    for row, name in enumerate(names):
        cells = ["-" if row == column else "{} / {}".format(*counts[row][column]) for column in range(len(names))]
        print(f"{name:>{width}s}  " + "  ".join(f"{cell:>{width}s}" for cell in cells))
    for title, lines in (
        ("same class, other sets (the loss allows each pixel its dataset's own set)", conflicts.different_sets),
        ("thing in one, stuff in the other (each dataset's own flag governs its losses)", conflicts.thing_stuff),
        ("classes that no dataset of this mixture can tell apart", conflicts.inseparable),
    ):
        print(f"\n{title}: {len(lines)}")
        for line in lines:
            print(f"  {line}")


if __name__ == "__main__":
    run(main)
