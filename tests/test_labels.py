"""Label contracts: hand-checkable sets, and every way a contract file can be wrong."""

import numpy as np
import pytest
import yaml

from post_platform.errors import ConfigError
from post_platform.labels import (
    DATASETS,
    VOID,
    allowed_sets,
    available,
    judged,
    label_problem,
    load_contract,
    negative_centers,
    taxonomy,
    thing_table,
)
from post_platform.labels.contract import load_contract_file
from post_platform.labels.taxonomy import FOLDER, load_taxonomy

NAMES = ("person", "car", "truck", "road", "rider")


def write(tmp_path, name, change):
    """The contract of `name` as a file of the user's, after `change(dict)`."""
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    change(content)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_taxonomy_is_coco_then_four_tiers():
    unified = taxonomy()
    assert len(unified.names) == len(set(unified.names)) == len(set(unified.colors)) == 211
    assert unified.names[0] == "person"
    assert unified.names[132] == "rug-merged"
    assert unified.names[210] == "object-other"
    assert unified.names[133:137] == ("rider", "pole", "traffic-sign", "crosswalk")
    assert sum(unified.isthing) == 135
    assert len(unified.prefix("driving")) == 137
    with pytest.raises(ConfigError, match="unknown tier 'cocoa'; valid: coco, driving"):
        unified.prefix("cocoa")


def test_every_official_dataset_has_a_contract_and_comes_before_any_other():
    assert len(DATASETS) == 13
    assert tuple(available()[:13]) == DATASETS


@pytest.mark.parametrize(
    ("name", "classes", "things", "headline", "video"),
    [  # counts of the official class tables
        ("kitti_mots", 2, 2, "sMOTSA", True),
        ("mots20", 1, 1, "sMOTSA", True),
        ("kitti_step", 19, 2, "STQ", True),
        ("motchallenge_step", 7, 1, "STQ", True),
        ("cityscapes", 19, 8, "PQ", False),
        ("cityscapes_vps", 19, 8, "VPQ", True),
        ("coco_panoptic", 133, 80, "PQ", False),
        ("vipseg", 124, 58, "VPQ", True),
        ("bdd100k_mots", 8, 8, "MOTSA", True),
        ("youtube_vis_2019", 40, 40, "AP", True),
        ("youtube_vis_2021", 40, 40, "AP", True),
        ("davis_unsup", 1, 1, "J&F", True),
        ("rob_mots", 80, 80, "HOTA", True),
    ],
)
def test_contract_facts(name, classes, things, headline, video):
    contract = load_contract(name)
    assert len(contract.classes) == classes
    assert int(thing_table(contract).sum()) == things
    assert (contract.headline, contract.video, contract.persistent) == (headline, video, video)
    partly = {"youtube_vis_2019", "youtube_vis_2021", "davis_unsup", "rob_mots"}  # some objects are left out
    assert contract.exhaustive is (name not in partly)


def test_kitti_mots_sets_by_hand():
    table = allowed_sets(load_contract("kitti_mots"), NAMES)
    assert table.shape == (256, 5)
    assert table[0].tolist() == [False, False, True, True, True]  # background: neither car nor person; rider stays
    assert table[1].tolist() == [False, True, False, False, False]
    assert table[2].tolist() == [True, False, False, False, False]  # "hand", "backpack" are not among the names
    assert table[3].all()
    assert table[VOID].all()


def test_class_unknown_to_the_model_is_void():
    table = allowed_sets(load_contract("kitti_step"), NAMES)
    assert table[10].all()  # sky: none of the five names
    assert table[14].tolist() == [False, False, True, False, False]


def test_background_that_excludes_every_name_is_void():
    assert allowed_sets(load_contract("kitti_mots"), ("person", "car"))[0].all()


def test_negative_centers_need_proof():
    mots, step, coco = (negative_centers(load_contract(name)) for name in ("kitti_mots", "kitti_step", "coco_panoptic"))
    assert np.flatnonzero(mots).tolist() == [1, 2]  # not the background: a truck may be there
    # road, sidewalk, wall, pole, terrain, sky; person and car. Not building (windows), fence (roadblocks),
    # lights and signs, vegetation (potted plants), nor the vehicles that are stuff here.
    assert np.flatnonzero(step).tolist() == [0, 1, 3, 5, 9, 10, 11, 13]
    assert coco[149]
    assert coco[1]
    assert not coco[189]
    assert not coco[VOID]


def test_native_hash_ignores_the_mapping_but_not_the_ids(tmp_path):
    original = load_contract("kitti_mots").native_hash()
    remapped = write(tmp_path, "kitti_mots", lambda c: c["classes"][0].update(also=["truck"]))
    assert load_contract_file(remapped).native_hash() == original
    renumbered = write(tmp_path, "kitti_mots", lambda c: c["classes"][0].update(id=7))
    assert load_contract_file(renumbered).native_hash() != original


def test_unknown_dataset_lists_the_nearest():
    with pytest.raises(ConfigError, match="no dataset 'kiti_mots'; did you mean kitti_mots"):
        load_contract("kiti_mots")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["classes"][0].update(weight=2.0), r"classes\.0\.weight: Extra inputs are not permitted"),
        (lambda c: c.update(threshold=0.3), r"threshold: Extra inputs are not permitted"),
        (lambda c: c["background"].update(weight=0.1), r"background\.weight: Extra inputs"),
        (lambda c: c["instances"].update(min_area=9), r"instances\.min_area: Extra inputs"),
        (
            lambda c: c["classes"][0].update(unified=["carr"]),
            "'car' names the unknown unified class 'carr'; did you mean",
        ),
        (lambda c: c["background"].update(excludes=["cars"]), "'background' names the unknown unified class 'cars'"),
        (lambda c: c["classes"][0].update(unified=["car", "hand"]), "'hand' is primary in 'car' and in 'pedestrian'"),
        (lambda c: c["classes"][0].update(also=["car"]), "'car': `also` repeats car"),
        (lambda c: c["classes"][0].update(id=2), "class id 2 appears twice"),
        (lambda c: c["classes"][0].update(id=255), "less than 255"),
        (lambda c: c["classes"][0].update(id=0), "class id 0 is taken by the background"),
        (lambda c: c["classes"][0].update(name="pedestrian"), "class name pedestrian appears twice"),
        (lambda c: c["classes"][0].update(isthing=False), "'car' has instances but is not a thing"),
        (lambda c: c["classes"][0].update(unified=[]), r"classes\.0\.unified"),
        (lambda c: c.update(num_classes=3), "num_classes is 3, but 2 classes are listed"),
        (lambda c: c.update(headline="AUC"), "headline"),
        (lambda c: c.update(dataset="mots20"), "describes dataset 'mots20'"),
        (lambda c: c.pop("instances"), "instances: Field required"),
    ],
)
def test_wrong_contract_is_refused(tmp_path, change, message):
    path = write(tmp_path, "kitti_mots", change)
    with pytest.raises(ConfigError, match=message) as refused:
        load_contract_file(path)
    assert str(refused.value).startswith("label contract kitti_mots.yaml: ")
    assert "\n" not in str(refused.value)


def test_yaml_cannot_name_python_objects(tmp_path):
    path = tmp_path / "kitti_mots.yaml"
    path.write_text("schema: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_contract_file(path)


def test_wrong_taxonomy_is_refused(tmp_path):
    content = yaml.safe_load((FOLDER / "unified.yaml").read_text())
    content["classes"][1]["color"] = content["classes"][0]["color"]
    (tmp_path / "unified.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="a colour appears twice"):
        load_taxonomy(tmp_path / "unified.yaml")


def test_label_problem_names_the_id():
    step = load_contract("kitti_step")
    classes = np.array([[0, 13], [255, 15]], np.uint8)
    instances = np.array([[0, 3], [0, 0]], np.uint16)
    assert label_problem(step, classes, instances) is None
    assert (
        label_problem(step, np.where(classes == 15, 20, classes).astype(np.uint8), instances)
        == "class id 20 is not in the contract of kitti_step"
    )
    instances[1, 1] = 4
    assert "class id 15 has no instances in kitti_step" in label_problem(step, classes, instances)


def test_ignore_regions_of_robmots_are_legal_and_say_nothing():
    contract = load_contract("rob_mots")
    codes = contract.ignore_codes()
    assert codes[100] == tuple(range(1, 81))
    assert (codes[103], codes[180]) == ((3,), (80,))
    assert sorted(codes) == list(range(100, 181))
    assert label_problem(contract, np.array([[0, 80, 100, 180, 255]], np.uint8), np.zeros((1, 5), np.uint16)) is None
    assert label_problem(contract, np.array([[181]], np.uint8), np.zeros((1, 1), np.uint16)) is not None
    assert allowed_sets(contract, NAMES)[100:181].all()
    assert not thing_table(contract)[100:181].any()
    assert not negative_centers(contract)[100:181].any()


def test_every_unified_class_is_primary_somewhere():
    primary = {name for dataset in DATASETS for entry in load_contract(dataset).classes for name in entry.unified}
    assert primary == set(taxonomy().names)


def test_an_ignore_region_is_no_class(tmp_path):
    path = write(tmp_path, "rob_mots", lambda content: content.update(ignore_regions={"every": 100, "per_class": 20}))
    with pytest.raises(ConfigError, match=r"rob_mots.yaml: ignore region 21 is also a class"):
        load_contract_file(path)
    path = write(tmp_path, "rob_mots", lambda content: content.update(ignore_regions={"every": 100, "per_class": 200}))
    with pytest.raises(ConfigError, match=r"rob_mots.yaml: ignore region 255 is also a class, or not below 255"):
        load_contract_file(path)


def test_ignore_region_spares_its_own_class_alone():
    truth = np.array([[100, 100, 103, 103, 103, 3]], np.uint8)
    pred = np.array([[1, 0, 3, 1, 0, 1]], np.uint8)
    assert judged(load_contract("rob_mots"), truth, pred).tolist() == [[255, 0, 255, 0, 0, 3]]
    assert judged(load_contract("kitti_mots"), truth, pred).tolist() == truth.tolist()
