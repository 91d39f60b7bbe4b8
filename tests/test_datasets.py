"""What every reader promises, whatever its dataset."""

import pytest

from post_platform.datasets import readable, reader
from post_platform.datasets.frame import MissingSplit
from post_platform.errors import ConfigError, DataError
from post_platform.labels import DATASETS


@pytest.mark.parametrize("dataset", readable())
def test_reader_contract(dataset, tmp_path):
    read = reader(dataset)
    assert read.SPLITS[0] == "train"
    for split in read.SPLITS:
        with pytest.raises(MissingSplit, match=f"^{dataset} {split}: nothing found in ") as error:
            read.frames(tmp_path, split)
        assert "python pipelines/convert.py" in error.value.hint
    with pytest.raises(DataError, match=f"^{dataset}: source .* does not exist"):
        read.frames(tmp_path / "nowhere", "train")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"^{dataset}: source .* is not a folder"):
        read.frames(tmp_path / "file", "train")


def test_every_official_dataset_can_be_read():
    assert set(DATASETS) <= set(readable())


def test_unknown_reader_lists_the_nearest():
    with pytest.raises(ConfigError, match="no dataset 'kitti_steps'; did you mean kitti_step"):
        reader("kitti_steps")
    with pytest.raises(ConfigError, match="no dataset 'frame'"):
        reader("frame")  # a file of the folder, but no dataset
