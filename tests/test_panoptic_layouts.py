"""Panoptic results: where JSON and PNGs may lie, and whose classes are scored when a truth's JSON lists others."""

import json
import shutil

import pytest
import test_results
import test_results_panoptic
from cityscapesscripts.evaluation.evalPanopticSemanticLabeling import evaluatePanoptic
from cityscapesscripts.helpers.labels import id2label
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from evalset import EXPECTED
from scored import scores, table_and_scores

from post_platform.errors import DataError
from post_platform.metrics.results import read_results
from post_platform.metrics.results.panoptic_json import contract_of

coco, city, vps = test_results.coco, test_results_panoptic.city, test_results_panoptic.vps
WINDOWS = [EXPECTED["vps"][window]["All"]["pq"] for window in "1234"]


def test_every_place_of_the_pngs(coco, tmp_path):
    """Besides the folder of the JSON's name: right beside the JSON, and both in one folder."""
    expected = scores("coco_panoptic", coco / "gt.json", coco / "pred.json")
    shutil.copytree(coco / "pred", tmp_path / "flat")
    shutil.copy(coco / "pred.json", tmp_path / "flat/predictions.json")  # as detectron2 leaves them
    (tmp_path / "flat/._predictions.json").write_text("junk")
    shutil.copytree(coco / "pred", tmp_path / "both/pred")
    shutil.copy(coco / "pred.json", tmp_path / "both/pred.json")
    for predictions in ("flat/predictions.json", "flat", "both", "both/pred", "both/pred.json"):
        assert scores("coco_panoptic", coco / "gt", tmp_path / predictions) == expected, predictions
    assert expected["PQ"] == pytest.approx(EXPECTED["panopticapi"]["All"]["pq"], abs=1e-9)


def test_classes_of_a_truth_that_lists_others_than_the_contract(coco):
    """The evaluation set's categories are trainIds + 1, two of them things: so its official VPQ was computed."""
    results = read_results("cityscapes_vps", coco / "gt.json", coco / "pred.json")
    assert [entry.name for entry in results.contract.classes] == [str(number) for number in range(19)]
    assert [entry.name for entry in results.contract.classes if entry.has_instances] == ["11", "13"]
    assert (results.contract.headline, results.contract.persistent, results.contract.video) == ("VPQ", True, True)
    found = scores("cityscapes_vps", coco / "gt.json", coco / "pred.json")
    assert found["VPQ"] == pytest.approx(sum(WINDOWS) / 4, abs=1e-9)


def test_classes_of_a_truth_that_agrees_are_called_as_in_the_contract(vps):
    source, content = vps
    contract = test_results_panoptic.load_contract("cityscapes_vps")
    listed = [
        {"id": entry.id, "name": f"the {entry.name}", "isthing": int(entry.isthing)} for entry in contract.classes
    ]
    file = source / "panoptic_gt_val_city_vps.json"
    file.write_text(json.dumps({**content, "categories": listed}))
    assert contract_of(contract, file) == contract
    listed[0]["isthing"] = 1
    file.write_text(json.dumps({**content, "categories": listed}))
    assert next(entry.name for entry in contract_of(contract, file).classes) == f"the {contract.classes[0].name}"


def test_cityscapes_by_train_ids(city):
    """csCreatePanopticImgs --use-train-id, and results with trainIds; the official tool scores the same."""
    convert2panoptic(str(city / "gtFine"), str(city / "gtFine"), useTrainId=True, setNames=["val"])
    test_results_panoptic.write_city(city / "results")
    file = city / "results/predictions.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        for segment in entry["segments_info"]:
            segment["category_id"] = id2label[segment["category_id"]].trainId
    file.write_text(json.dumps(content))
    truth = city / "gtFine/cityscapes_panoptic_val_trainId"
    official = evaluatePanoptic(
        f"{truth}.json", str(truth), str(file), str(city / "results/predictions"), str(city / "o")
    )
    _, found = table_and_scores("cityscapes", truth, city / "results")
    assert found["PQ"] == pytest.approx(official["All"]["pq"], abs=1e-9)
    assert 0 < found["PQ"] < 1


def test_a_segment_that_is_listed_twice_is_named(coco, tmp_path):
    folder = test_results.change_json(coco, tmp_path, lambda a: a[1]["segments_info"].append(a[1]["segments_info"][0]))
    with pytest.raises(DataError, match=r"pred\.json, image 0002_000001: segment 1000 is listed twice"):
        scores("coco_panoptic", coco / "gt", folder)
    shutil.rmtree(folder)
    folder = test_results.change_json(coco, tmp_path, lambda a: a[1]["segments_info"][0].update(id=1 << 24))
    with pytest.raises(DataError, match=r"image 0002_000001: segment 16777216 must be in 1\.\.16777215"):
        scores("coco_panoptic", coco / "gt", folder)


def test_a_truth_without_categories_does_not_say_what_it_is(coco, tmp_path):
    shutil.copytree(coco / "gt", tmp_path / "gt")
    content = json.loads((coco / "gt.json").read_text())
    (tmp_path / "gt.json").write_text(json.dumps({"annotations": content["annotations"]}))
    with pytest.raises(DataError, match=r"gt\.json: lists no categories"):
        scores("coco_panoptic", tmp_path / "gt", coco / "pred")
