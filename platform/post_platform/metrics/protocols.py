"""Protocols: whose rules a score follows where official tools disagree; a dataset's own by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from post_platform.errors import ConfigError, nearest

VPS_WINDOWS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Protocol:
    """The rules on which official tools differ; docs/scores.md has the table of what each choice changes.

    `mots`: matches of MOTS above IoU 0.5 (mots_tools) or from 0.5 on (TrackEval), and how each counts fragments.
    `pq_crowd`: all crowd of a class excuses a prediction on it, or its last segment in the JSON alone (panopticapi).
    `vpq_windows`: frames per tube. `vpq_crowd`: left out (VPS), or missed objects (deeplab2).
    """

    name: str
    mots: Literal["mots_tools", "trackeval"] = "mots_tools"
    pq_crowd: Literal["every", "last"] = "every"
    vpq_windows: tuple[int, ...] = VPS_WINDOWS
    vpq_crowd: Literal["ignored", "missed"] = "ignored"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("mots_tools"),
        Protocol("trackeval", mots="trackeval"),
        Protocol("step"),
        Protocol("deeplab2", vpq_crowd="missed"),
        Protocol("panopticapi", pq_crowd="last"),
        Protocol("vps"),
        Protocol("vipseg", vpq_windows=(1, 2, 4, 6, 8)),
        Protocol("pycocotools"),
        Protocol("davis"),
    )
}
_CHOICES = {
    "kitti_mots": ("mots_tools", "trackeval"),
    "mots20": ("mots_tools", "trackeval"),
    "bdd100k_mots": ("trackeval", "mots_tools"),
    "rob_mots": ("trackeval", "mots_tools"),
    "kitti_step": ("step", "deeplab2", "trackeval"),
    "motchallenge_step": ("step", "deeplab2", "trackeval"),
    "coco_panoptic": ("panopticapi", "vps"),
    "cityscapes": ("panopticapi", "vps"),
    "cityscapes_vps": ("vps", "vipseg", "deeplab2", "trackeval"),
    "vipseg": ("vipseg", "vps", "deeplab2", "trackeval"),
    "coco_instances": ("pycocotools",),
    "youtube_vis_2019": ("pycocotools",),
    "youtube_vis_2021": ("pycocotools",),
    "davis_unsup": ("davis", "trackeval"),
}


def protocol_of(dataset: str, name: str | None = None) -> Protocol:
    """The protocol `name` of a dataset, or its own.

    Raises: ConfigError listing the dataset's protocols when `name` is none of them.
    """
    choices = _CHOICES.get(dataset, ("step",))
    if name is not None and name not in choices:
        raise ConfigError(
            f"--protocol {name}: {dataset} has no such protocol{nearest(name, choices)}",
            f"its protocols, its own first: {', '.join(choices)}",
        )
    return PROTOCOLS[name or choices[0]]
