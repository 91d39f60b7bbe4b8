"""What a configuration accepts, and the one line it answers with otherwise."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from post_platform.config import (
    KEYS,
    MAY_CHANGE_ON_RESUME,
    RunConfig,
    TrainConfig,
    differences,
    dump_config,
    load_config,
)
from post_platform.config_text import BRANCH_WEIGHTS, BRANCHES
from post_platform.config_values import WorkerRange
from post_platform.errors import ConfigError

BY_DESIGN = "by design no dataset has a number of its own"


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_keys_that_others_rely_on_exist_with_their_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config()
    assert (config.data.root, config.run.dir) == (str(tmp_path / "shards"), str(tmp_path / "runs"))
    assert config.data.datasets is None
    assert config.data.alpha == 0.0
    assert config.data.crop == (512, 1024)
    assert config.data.decode_on == "trainer"
    assert config.model.branches == ("semantic", "center", "offset", "prev_offset")
    assert config.loss.model_dump(exclude=BRANCH_WEIGHTS.keys() - BRANCHES) == {
        "semantic": 1.0,
        "center": 200.0,
        "offset": 0.01,
        "prev_offset": 0.01,
        "hard_fraction": 0.2,
        "center_sigma": 8.0,
        "small_area": 4096.0,
        "small_weight": 3.0,
        "unlabelled": "sets",
        "weighting": "fixed",
    }
    assert (config.train.steps, config.train.global_batch, config.train.workers) == (60_000, 32, None)
    assert set(KEYS) >= MAY_CHANGE_ON_RESUME


@pytest.mark.parametrize(
    "text",
    [
        "data.crop: [64, 128]\noptim.lr: 1e-4\nseed: 3\n",
        "data:\n  crop: [64, 128]\noptim: {lr: 1.0e-4}\nseed: 3\n",
        "data:\n  crop: [64, 128]\noptim.lr: 0.0001\nseed: 3\nloss:\n",
    ],
    ids=["dotted", "nested", "both"],
)
def test_yaml_is_read_dotted_and_nested_and_overrides_win(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    config = load_config(path, ["seed=4", "seed=5"])
    assert (config.data.crop, config.optim.lr, config.seed) == ((64, 128), 1e-4, 5)


@pytest.mark.parametrize(
    ("override", "section", "leaf", "value"),
    [
        ("data.datasets=kitti_mots", "data", "datasets", ("kitti_mots",)),
        ("data.datasets=kitti_mots,kitti_step", "data", "datasets", ("kitti_mots", "kitti_step")),
        ('data.datasets=["kitti_mots", kitti_step]', "data", "datasets", ("kitti_mots", "kitti_step")),
        ("data.datasets=null", "data", "datasets", None),
        ("train.workers=3", "train", "workers", 3),
        ("train.workers={min: 1, max: 4}", "train", "workers", WorkerRange(min=1, max=4)),
        ("train.steps=6e4", "train", "steps", 60_000),
        ("optim.lr=1e-3", "optim", "lr", 0.001),
        ("data.scale=0.5,1", "data", "scale", (0.5, 1.0)),
        ("data.flip=false", "data", "flip", False),
        ("data.root=s3://bucket/shards", "data", "root", "s3://bucket/shards"),
        ("run.name=2026-11-23", "run", "name", "2026-11-23"),
        ("run.name=007", "run", "name", "007"),
        ("run.name=1e5", "run", "name", "1e5"),
        ("mlflow.uri=http://127.0.0.1:5000", "mlflow", "uri", "http://127.0.0.1:5000"),
        ("model.branches=[prev_offset, offset, center, semantic]", "model", "branches", RunConfig().model.branches),
    ],
)
def test_override_values(override, section, leaf, value):
    assert getattr(getattr(load_config(None, [override]), section), leaf) == value


def test_relative_addresses_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["mlflow.uri=sqlite:///a.db", "model.init_from=c", "run.dir=r"])
    assert config.mlflow.uri == f"sqlite:///{tmp_path}/a.db"
    assert (config.model.init_from, config.run.dir) == (str(tmp_path / "c"), str(tmp_path / "r"))
    assert load_config(None, ["mlflow.uri=a.db"]).mlflow.uri == f"sqlite:///{tmp_path}/a.db"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=1", "unknown config key 'optim.learning_rate'; did you mean optim.lr?"),
        ("optm.lr=1", "unknown config key 'optm.lr'; did you mean optim.lr?"),
        ("lr=1", "unknown config key 'lr'; did you mean optim.lr?"),
        ("train.batch_size=8", "unknown config key 'train.batch_size'; did you mean train.global_batch?"),
        ("loss.ofset=1", "unknown config key 'loss.ofset'; did you mean loss.offset?"),
        (
            "loss.depth=1",
            "unknown config key 'loss.depth': no branch 'depth'; valid: semantic, center, offset, prev_offset",
        ),
        (
            "train.workers.min=1",
            "unknown config key 'train.workers.min'; train.workers is set as a whole: train.workers=...",
        ),
        ("nothing=1", "unknown config key 'nothing'; sections: data, model, loss, optim, train, eval, run, mlflow, "),
        ("data=3", "'data' is a section, set by its keys (data.root, ...); got 3"),
        ("optim.lr", "override 'optim.lr' is not key=value"),
        ("data.root=[", "data.root: not YAML, line 1"),
    ],
)
def test_unknown_key_names_the_one_that_was_meant(override, message):
    assert refused(override).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=-1", "optim.lr: must be > 0, got -1"),
        ("optim.lr=.nan", "optim.lr: must be a finite number, got nan"),
        ("optim.lr=true", "optim.lr: must be a number, got True"),
        ("loss.semantic=1e400", "loss.semantic: must be a finite number, got inf"),
        ("data.alpha=1.5", "data.alpha: must be <= 1, got 1.5"),
        ("data.crop=100,200", "data.crop: must be multiples of 16, the stride of the backbone, got '100,200'"),
        ("data.crop=64", "data.crop: must be two values, [a, b], got [64]"),
        ("data.scale=2,1", "data.scale: must be (smallest, largest), got '2,1'"),
        ("data.stride=0,1", "data.stride: must be >= 1, got '0'"),
        (
            "train.workers=0",
            "train.workers: must be a number >= 1, or {min: a, max: b} with 1 <= a <= b, got 0",
        ),
        (
            "train.workers={min: 3, max: 2}",
            "train.workers: must be a number >= 1, or {min: a, max: b} with 1 <= a <= b, got {'max': 2, 'min': 3}",
        ),
        ("run.dir=gs://bucket/runs", "run.dir: gs://bucket/runs: expected a folder or s3://bucket/prefix"),
        ("run.dir=s3://bucket/runs", "mlflow.uri must be a server, or a *.db file, where run.dir is on S3"),
        ("data.decode_on=gpu", "data.decode_on: must be 'trainer' or 'cluster', got 'gpu'"),
        ("data.clip=1", "data.clip: must be >= 2, got 1"),
        ("model.backbone=vgg", "model.backbone: must be 'small', 'resnet18', 'resnet50' or 'resnet52', got 'vgg'"),
        (
            "model.branches=semantic",
            "model.branches: must hold center, offset: a panoptic result needs semantic, center and offset, ",
        ),
        ("data.datasets=kiti_mots", "data.datasets: unknown dataset 'kiti_mots'; did you mean kitti_mots"),
        ("data.datasets=[]", "data.datasets: must name at least one dataset"),
        ("run.name=../x", "run.name: must be a folder's name"),
        ("mlflow.uri=./mlruns", "mlflow.uri: must be http(s)://, sqlite:/// or a *.db file"),
    ],
)
def test_impossible_value_names_key_constraint_and_value(override, message):
    assert refused(override).startswith(message)


@pytest.mark.parametrize(
    "override",
    [
        "data.kitti_mots.weight=2",
        "data.KITTI-MOTS.weight=2",
        "loss.kitti_mots=1",
        "eval.kitti_mots.threshold=.3",
        "kitti_mots={weight: 1}",
        "data.weights=[1, 2]",
        "data={kitti_mots: {weight: 2}}",
        "data={weights: {kitti_mots: 2}}",
        "data.datasets={kitti_mots: 2}",
        "data.datasets=kitti_mots:2",
        "data.datasets=[kitti_mots: 2]",
        "data.datasets=[kitti_mots, 2]",
        "data.datasets=2",
        "data.datasets=[kitti_mots, kitti_mots]",
        "optim.lr={kitti_mots: 0.1}",
        "data.crop={kitti_mots: [64, 64]}",
        "train.workers={kitti_mots: 1}",
    ],
)
def test_no_dataset_can_be_given_a_number_of_its_own(override):
    assert BY_DESIGN in refused(override)


def test_loss_weight_of_an_absent_branch_is_refused_and_tracking_falls_back(tmp_path):
    without = "model.branches=[semantic, center, offset]"
    assert "no branch 'prev_offset'" in refused(without, "loss.prev_offset=0.01")
    assert "no branch 'prev_offset'" in refused(without, "eval.tracking=prev_offset")
    config = load_config(None, [without])
    assert config.eval.tracking == "iou"
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "'seed' is written twice, the second time on line 2"),
        ("optim.lr: 1\noptim: {lr: 2}\n", "'optim.lr' is written twice"),
        ("- 1\n", "expected a mapping of keys, got [1]"),
        ("a: [\n", "not YAML, line 2"),
        ("x: !!python/object/apply:os.system ['true']\n", "not YAML, line 1"),
        ("loss: {kitti_step: 2}\n", BY_DESIGN),
        ("optim:\n  learning_rate: 2\n", "did you mean optim.lr?"),
        ("seed: \xff\n", "not UTF-8 text"),
        ("run.name: 7\n", "run.name: must be text (in YAML, put it in quotes), got 7"),
    ],
)
def test_bad_file_is_one_line_that_names_it(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the config .*/none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "optim.lr": st.floats(1e-12, 1e6),
        "optim.clip": st.none() | st.floats(1e-3, 10),
        "data.crop": st.tuples(st.integers(1, 64), st.integers(1, 64)).map(lambda s: [16 * s[0], 16 * s[1]]),
        "data.datasets": st.none() | st.lists(st.sampled_from(["kitti_mots", "kitti_step"]), min_size=1, unique=True),
        "train.workers": st.none() | st.integers(1, 9) | st.just({"min": 1, "max": 3}),
        "mlflow.experiment": st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
        "run.name": st.from_regex(r"[a-z0-9][a-z0-9.+-]{0,8}", fullmatch=True),
        "data.flip": st.booleans(),
        "seed": st.integers(0, 2**63 - 1),
    },
)


@given(values=OVERRIDES)
@example(values={"run.name": "0e0"})
@example(values={"run.name": "0e0a"})
@example(values={"run.name": "2026-11-23"})
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_dump_reads_back_to_an_equal_configuration(tmp_path: Path, values):
    sections: dict[str, dict] = {}
    for key, value in values.items():
        section, _, leaf = key.partition(".")
        if leaf:
            sections.setdefault(section, {})[leaf] = value
        else:
            sections[section] = value
    config = RunConfig.model_validate(sections)
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert all("." in line.split(":")[0] or line.startswith("seed") for line in dump_config(config).splitlines())


def test_differences_name_the_key_and_both_values():
    a = load_config()
    b = load_config(None, ["optim.lr=0.01", "train.steps=5", "model.branches=semantic,center,offset"])
    assert differences(a, a) == []
    assert differences(a, b, ignoring=MAY_CHANGE_ON_RESUME) == [
        "model.branches: ['semantic', 'center', 'offset', 'prev_offset'] -> ['semantic', 'center', 'offset']",
        "loss.prev_offset: 0.01 -> None",
        "optim.lr: 0.001 -> 0.01",
        "eval.tracking: prev_offset -> iou",
    ]
    assert "train.steps: 60000 -> 5" in differences(a, b)


def test_the_tree_is_frozen_and_closed():
    config = load_config()
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3
    with pytest.raises(ValueError, match="Extra inputs"):
        TrainConfig(epochs=3)
