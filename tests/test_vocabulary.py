"""The model's classes come from what the training shards contain, and the label tables follow them."""

from types import SimpleNamespace

import pytest

from post_platform.errors import DataError
from post_platform.labels import available, load_contract, taxonomy
from post_platform.training.vocabulary import class_names, label_tables, projection_of, projections, thing_flags


def split(dataset, *native):
    """A split that contains these native class ids."""
    return SimpleNamespace(dataset=dataset, manifest={"classes": {str(number): 1 for number in native}})


MOTS = split("kitti_mots", 1, 2)


STEP = split("kitti_step", *range(19))


def test_observed_classes_are_the_primary_ones_in_the_taxonomy_s_order():
    names = class_names([split("kitti_step", 0, 11, 13)], "observed")
    assert set(names) == {"road", "crosswalk", "person", "hand", "car"}
    assert list(names) == sorted(names, key=taxonomy().names.index)


def test_a_class_that_does_not_occur_is_not_in_the_model():
    assert class_names([split("kitti_step", 13)], "observed") == ("car",)


def test_background_and_void_are_no_classes():
    assert class_names([split("kitti_step", 13, 255)], "observed") == ("car",)
    with pytest.raises(DataError, match=r"^no labelled class occurs in kitti_mots$"):
        class_names([split("kitti_mots", 0, 255)], "observed")


def test_a_background_that_is_none_of_the_classes_gets_some_to_be():
    """Else all of an image would be cars and people, or the hands that are a part of them."""
    coco = class_names([], "coco")
    alone = class_names([MOTS], "observed")
    assert set(alone) == {*coco, "hand"}
    background = label_tables([MOTS], alone).allowed[0, 0]
    free = {name for name, allowed in zip(alone, background.tolist(), strict=True) if allowed}
    assert free == set(alone) - {"car", "person"}
    assert class_names([split("kitti_mots", 1)], "observed") == coco
    assert set(class_names([MOTS, split("kitti_step", 0)], "observed")) == {
        "car",
        "person",
        "hand",
        "road",
        "crosswalk",
    }
    partly = {name: load_contract(name) for name in available() if load_contract(name).background}
    for name, contract in partly.items():
        names = class_names([split(name, *(entry.id for entry in contract.classes))], "observed")
        left = set(names) - {name for entry in contract.classes for name in entry.unified}
        assert left or contract.background.policy == "void", name


def test_the_mixture_is_the_union():
    other = split("kitti_step", 0, 13)
    together = class_names([STEP, other, MOTS], "observed")
    assert set(together) == set(class_names([STEP], "observed")) | {"car", "person", "hand"}
    assert together == class_names([MOTS, STEP, other], "observed")


def test_tiers_of_the_taxonomy_hold_each_other():
    coco, core, everything = (class_names([MOTS], rule) for rule in ("coco", "core", "all"))
    assert everything == taxonomy().names
    assert everything[: len(core)] == core
    assert core[: len(coco)] == coco
    assert len(coco) < len(core) < len(everything)


def test_a_thing_is_what_some_dataset_labels_one_by_one():
    step = split("kitti_step", *range(19))
    names = class_names([MOTS, step], "observed")
    flags = dict(zip(names, thing_flags([MOTS, step], names), strict=True))
    assert flags["car"]
    assert flags["person"]
    assert not flags["road"]
    assert not flags["bicycle"], "KITTI-STEP has no bicycle instances"
    coco = split("coco_panoptic", *(entry.id for entry in load_contract("coco_panoptic").classes))
    names = class_names([step, coco], "observed")
    assert dict(zip(names, thing_flags([step, coco], names), strict=True))["bicycle"]


def test_label_tables_say_what_each_dataset_s_label_allows_and_proves():
    step = split("kitti_step", *range(19))
    names = class_names([MOTS, step], "observed")
    tables = label_tables([MOTS, step], names)
    assert tables.allowed.shape == (2, 256, len(names))
    at = {name: place for place, name in enumerate(names)}
    car = tables.allowed[0, 1].nonzero().flatten().tolist()
    assert car == [at["car"]]
    background = tables.allowed[0, 0]
    assert not background[at["car"]]
    assert not background[at["person"]]
    assert background[at["road"]]
    assert tables.allowed[:, 255].all()
    assert tables.thing[0].nonzero().flatten().tolist() == [1, 2]
    assert tables.thing[1].nonzero().flatten().tolist() == [11, 13]
    assert not tables.negative[0, 0], "a background may hide an object"
    assert not tables.negative[:, 255].any()
    assert tables.negative[1, 0], "a road is no object"


def test_ignoring_what_is_unlabelled_changes_the_background_of_partly_labelled_datasets_alone():
    step = split("kitti_step", *range(19))
    names = class_names([MOTS, step], "observed")
    sets, ignore = (label_tables([MOTS, step], names, choice) for choice in ("sets", "ignore"))
    assert ignore.allowed[0, 0].all()
    assert not ignore.informative()[0, 0]
    assert sets.informative()[0, 0]
    changed = (sets.allowed != ignore.allowed).any(-1)
    assert changed.nonzero().tolist() == [[0, 0]], "KITTI-STEP's 0 is its road"
    assert sets.thing.equal(ignore.thing)
    assert sets.negative.equal(ignore.negative)


def test_a_stuff_label_proves_more_where_no_dataset_has_that_class_as_a_thing():
    step = split("kitti_step", *range(19))
    coco = split("coco_panoptic", *(entry.id for entry in load_contract("coco_panoptic").classes))
    alone = label_tables([step], class_names([step], "observed"))
    mixed = label_tables([step, coco], class_names([step, coco], "observed"))
    bus = 15
    assert alone.negative[0, bus]
    assert not mixed.negative[0, bus], "COCO labels buses one by one, so one may stand here"


def test_a_projection_takes_primary_sets_only_and_is_disjoint():
    mots = projection_of(load_contract("kitti_mots"), taxonomy().names)
    members = [[taxonomy().names[index] for index in row] for row in mots.members]
    assert members == [["car"], ["person", "hand"]]
    assert (mots.names, mots.things, mots.background, mots.fill_void) == (
        ("car", "pedestrian"),
        (True, True),
        True,
        False,
    )
    for name in available():
        found = projection_of(load_contract(name), taxonomy().names)
        assert found.matrix(len(taxonomy().names)).sum(0).max() == 1


def test_a_projection_skips_classes_that_the_model_does_not_know():
    step = projection_of(load_contract("kitti_step"), ("car", "crosswalk"))
    assert {name: row for name, row in zip(step.names, step.members, strict=True) if row} == {"road": (1,), "car": (0,)}
    assert step.fill_void, "STQ counts void as a mistake"


def test_only_datasets_that_share_a_class_are_projected_to():
    assert "kitti_mots" not in projections(("road",))
    assert set(projections(taxonomy().names)) == set(available())
