"""What a study knows of its runs, in `study.json`: each change is on disk before anything else follows from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from post_platform import storage
from post_platform.config import RunConfig
from post_platform.errors import ConfigError
from post_platform.study_plan import Part, Recipe, recipes
from post_platform.training.evaluate import Scores


@dataclass
class Run:
    """A recipe with one seed, and what became of it. `scores`: by way of tracking, of the datasets that tables show."""

    name: str
    recipe: Recipe
    seed: int
    state: Literal["waiting", "trained", "failed"] = "waiting"
    reason: str = ""
    run_id: str = ""
    seconds: float = 0.0
    scores: dict[str, Scores] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name of its recipe."""
        return self.name.rpartition("_seed_")[0]


class Study:
    """The runs of a study, as its file holds them: each change is on disk before anything else follows from it."""

    def __init__(
        self, folder: Path, config: RunConfig, seeds: int, parts: Sequence[Part], digests: dict[str, str]
    ) -> None:
        """Read what an earlier process of the study left, and add the runs that are not there yet.

        Args:
            folder: of the study.
            config: of every run.
            seeds: how many of each recipe.
            parts: what is compared.
            digests: of the data's manifests, by `<dataset>/<split>`.

        Raises: ConfigError: what is there was trained on other data.
        """
        self.folder, self.config, self.seeds, self.parts, self.digests = folder, config, seeds, parts, digests
        self.file = folder / "study.json"
        stored: dict[str, Any] = {"run_id": None, "data": digests, "runs": []}
        if self.file.exists():
            stored = json.loads(self.file.read_text())
        changed = sorted(name for name, _ in stored["data"].items() ^ digests.items())
        if changed:
            raise ConfigError(
                f"study {config.run.name!r} exists ({folder}) with other shards of {', '.join(dict.fromkeys(changed))}",
                "give it another name: run.name=<new name>",
            )
        self.run_id: str | None = stored["run_id"]
        self.known = {run["name"]: _read(run) for run in stored["runs"]}
        everything = max((recipe.datasets for recipe in recipes(parts)), key=len)
        for seed in range(config.seed, config.seed + seeds):
            for recipe in recipes(parts):
                name = f"{recipe.name(everything)}_seed_{seed}"
                self.known.setdefault(name, Run(name, recipe, seed))

    @property
    def runs(self) -> list[Run]:
        """What is asked for now; an earlier process may have asked for more."""
        asked, seeds = set(recipes(self.parts)), range(self.config.seed, self.config.seed + self.seeds)
        return [run for run in self.known.values() if run.recipe in asked and run.seed in seeds]

    def save(self) -> None:
        """Write the file anew, whole or not at all."""
        runs = [asdict(run) for run in self.known.values()]
        content = {"run_id": self.run_id, "data": self.digests, "runs": runs}
        storage.write_bytes(self.file, json.dumps(content, indent=1).encode())

    def config_of(self, run: Run) -> RunConfig:
        """The configuration of a run: the study's, with the run's recipe and seed."""
        config, recipe = self.config, run.recipe
        data = {"datasets": recipe.datasets, "alpha": recipe.alpha}
        return config.model_copy(
            update={
                "data": config.data.model_copy(update=data),
                "loss": config.loss.model_copy(update={"unlabelled": recipe.unlabelled}),
                "run": config.run.model_copy(update={"dir": str(self.folder), "name": run.name}),
                "seed": run.seed,
            }
        )


def _read(stored: dict[str, Any]) -> Run:
    recipe = stored["recipe"]
    return Run(**stored | {"recipe": Recipe(tuple(recipe["datasets"]), recipe["alpha"], recipe["unlabelled"])})
