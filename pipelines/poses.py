"""The step before labels that finds the poses of their scenes, each once, for all cameras."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from catalog.manifest import Row
from dense_depth.datasets import PoseSource
from dense_depth.datasets.scene import Scene
from dense_depth.pose_store import pose_path, posed
from dense_depth.store import open_store
from pipelines.console import say
from pipelines.runner import Outcome, PlannedShard, attempt, finished


@dataclass(frozen=True)
class PoseStep:
    """Finds the poses of scenes in workers and leaves them in the store: its files are the receipts.

    Attributes:
        store: Folder or URL.
        source: Where the poses come from.
        load: Reads a scene by its name, in the driver.
        paths: Where the store keeps the poses of each scene, by its name.
    """

    store: str
    source: PoseSource
    load: Callable[[str], Scene]
    paths: dict[str, str] = field(default_factory=dict)

    def plan(self, scene: Scene) -> str:
        """Takes down a scene; returns where its poses are kept."""
        return self.paths.setdefault(scene.name, pose_path(scene, self.source))

    def run(self, scenes: Collection[str], workers: int | None) -> dict[str, str]:
        """Finds the poses that are missing.

        Args:
            scenes: Names of the scenes that are needed.
            workers: As in ``runner.run``.

        Returns:
            The error of each scene that failed.
        """
        there = {file.path for file in open_store(self.store).walk("poses")}
        tasks = [PlannedShard(path, name, "poses", 0, 0) for name, path in self.paths.items() if name in scenes]
        todo = [task for task in tasks if task.shard_id not in there]
        failed: dict[str, str] = {}
        if todo:
            say(f"poses: {len(tasks)} scenes, {len(tasks) - len(todo)} done before, {len(todo)} to register")
            list(finished(todo, self.load, FindPoses(self.store, self.source), workers, failed))
        return failed


@dataclass(frozen=True)
class FindPoses:
    """The part of the step that a worker does."""

    store: str
    source: PoseSource

    def __call__(self, scene: Scene, tasks: Sequence[PlannedShard]) -> Outcome:
        """Finds the poses of a scene, unless they are there by now."""
        return attempt(self._rows(scene, tasks))

    def _rows(self, scene: Scene, tasks: Sequence[PlannedShard]) -> Iterator[Row]:
        posed(scene, self.source, open_store(self.store))
        for task in tasks:
            yield {"shard_id": task.shard_id}
