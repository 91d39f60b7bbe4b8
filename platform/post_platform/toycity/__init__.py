"""Toy city: a synthetic street with known truth, and independent writers of three official dataset layouts."""

from post_platform.toycity.layouts import write_all, write_coco_panoptic, write_kitti_mots, write_kitti_step
from post_platform.toycity.world import Scene, Track, World

__all__ = ["Scene", "Track", "World", "write_all", "write_coco_panoptic", "write_kitti_mots", "write_kitti_step"]
