"""The conflict matrix of a mixture, on contracts small enough to check by eye; and the script that prints it."""

import json
import subprocess
import sys
from pathlib import Path

from post_platform.labels import load_contract
from post_platform.labels.conflicts import find_conflicts

ROOT = Path(__file__).resolve().parent.parent


def small(dataset, *classes):
    """A contract with only these classes: (name, has_instances, unified names)."""
    listed = [
        {"id": number, "name": name, "isthing": things, "has_instances": things, "unified": unified}
        for number, (name, things, unified) in enumerate(classes, start=1)
    ]
    whole = load_contract(dataset).model_dump()
    return type(load_contract(dataset)).model_validate(
        {**whole, "background": None, "classes": listed, "num_classes": len(listed)}
    )


def test_by_hand():
    one = small("kitti_mots", ("person", True, ["person", "rider"]), ("bus", True, ["bus"]))
    two = small(
        "kitti_step", ("walker", True, ["person"]), ("coach", False, ["bus"]), ("wall", False, ["wall-brick", "roof"])
    )
    found = find_conflicts([one, two])
    assert found.covered == 5
    assert found.different_sets == ("kitti_mots 'person' and kitti_step 'walker': only in kitti_mots: rider",)
    assert found.thing_stuff == ("kitti_mots 'bus' and kitti_step 'coach': thing in kitti_mots, stuff in kitti_step",)
    assert found.inseparable == ("roof, wall-brick (always together, in kitti_step)",)
    assert found.matrix == (((0, 0), (1, 1)), ((1, 1), (0, 0)))


def test_a_dataset_agrees_with_itself():
    step = load_contract("kitti_step")
    found = find_conflicts([step, step])
    assert (found.different_sets, found.thing_stuff) == ((), ())


def test_a_third_dataset_can_separate():
    step, coco = load_contract("kitti_step"), load_contract("coco_panoptic")
    walls = "wall-brick, wall-stone, wall-tile, wall-wood, wall-other-merged (always together, in kitti_step)"
    assert walls in find_conflicts([step, step]).inseparable
    assert walls not in find_conflicts([step, coco]).inseparable


def run_script(*arguments):
    command = [sys.executable, "pipelines/labels.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_script(tmp_path):
    one = run_script("kitti_mots")
    assert "1  car         thing  car\n" in one.stdout
    assert "0: any class but car, person; 255: void" in one.stdout
    several = run_script("kitti_mots", "coco_panoptic", "--json", tmp_path / "conflicts.json")
    assert "kitti_mots 'pedestrian' and coco_panoptic 'person': only in coco_panoptic: rider" in several.stdout
    assert json.loads((tmp_path / "conflicts.json").read_text())["matrix"][0][1] == [1, 0]
    wrong = run_script("kitti_mot")
    assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (
        1,
        "error: no dataset 'kitti_mot'; did you mean kitti_mots, kitti_step?",
    )
    twice = run_script("kitti_mots", "kitti_mots")
    assert (twice.returncode, twice.stderr) == (1, "error: a dataset is named twice\n")
