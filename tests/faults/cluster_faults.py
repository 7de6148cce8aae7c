"""The faults of a cluster, one function each: start a job on a real Ray of several nodes, do harm, and compare.

Each ends with the store that an undisturbed run makes, record by record and bit by bit, and with as many records and
errors as there are images. The tests run each once, `benchmarks/fault_matrix.py` many times with seeds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import fsspec

from pipeline.cluster import ray
from pipeline.config import EngineConfig, ExtractJob
from pipeline.job import JobResult, JobStart, run_job
from pipeline.sources import SourceConfig
from pipeline.unit import UnitReport
from storage import StoreError, open_store, verify_store
from tests.faults.hooked import HookedConfig, jumping_clock
from tests.helpers import differences, s3_environment, write_photos
from tests.wire import Wire, s3_server

IMAGES = 24
PAUSE = 0.05  # seconds an image takes, so that harm meets work
ROOT = Path(__file__).parents[2]
HEALTH = {  # how fast Ray notices that a node is gone; by default it takes it half a minute
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 8,  # a busy machine answers late
}


@dataclass
class Scene:
    """A cluster of two nodes with a CPU each, one of them with a GPU in name only, photographs, and the store that an
    undisturbed run makes of them."""

    cluster: Any
    photos: Path
    whole: Path
    wire: Wire
    keys: list[str]
    second: Any = None

    def job(self, out: Path | str, workers: int = 2, hooks: dict[str, Any] | None = None, **engine: Any) -> ExtractJob:
        small: dict[str, Any] = {"width_divisor": 32, "shorter": 64, "longer": 100, "device": "cpu"}
        network = HookedConfig(model="r50", weights="random:0", **{**small, "pause": PAUSE, **(hooks or {})})
        settings = {"engine": "ray", "workers": workers, "images_per_shard": 6, **engine}
        return ExtractJob(SourceConfig(str(self.photos)), network, EngineConfig(str(out), **settings))

    def restore(self) -> None:
        """Add a second node where there is none, as after a fault that ended before it had added another."""
        if sum(bool(node["Alive"]) for node in ray.nodes()) < 2:
            self.second = self.cluster.add_node(num_cpus=1, object_store_memory=100 << 20)

    def check(self, out: Path | str, result: JobResult | None = None, lost: dict[str, str] | None = None) -> None:
        """See that the store is the undisturbed one, but for the images that have to be errors, by reason."""
        expected = [f"only in one: {key}" for key in sorted(lost or {})] + (["errors"] if lost else [])
        store = open_store(out)
        found = {row.key: (row.reason, row.message) for row in store.errors()}
        assert {key: reason for key, (reason, _) in found.items()} == (lost or {}), found
        apart = differences(Path(self.whole), out)  # type: ignore[arg-type]
        assert apart == expected, apart
        assert verify_store(out).problems == []
        assert len(store) + len(store.errors()) == IMAGES
        assert result is None or (result.status, result.report.images) == (0, IMAGES), result


@dataclass
class Watch:
    """A progress that counts, and does something once so many images are finished."""

    after: int = 0
    act: Callable[[], None] = lambda: None
    images: int = 0
    failed: int = 0
    started_at: JobStart | None = field(default=None, repr=False)

    def started(self, start: JobStart) -> None:
        self.started_at = start

    def advanced(self, images: int, failed: int) -> None:
        before = self.images
        self.images, self.failed = self.images + images, self.failed + failed
        if before < self.after <= self.images:
            self.act()

    def reported(self, report: UnitReport) -> None:
        pass

    def stopped(self) -> None:
        pass


@contextlib.contextmanager
def open_scene(folder: Path) -> Iterator[Scene]:
    """Set the scene up, S3 included; `folder` holds what is made."""
    from ray.cluster_utils import Cluster

    ray.shutdown()  # what other tests share
    with _s3() as wire, mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT), "TRIPTYCH_CACHE": str(folder / "cache")}):
        node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "num_gpus": 1, "_system_config": HEALTH})
        try:
            keys = write_photos(folder / "photos", IMAGES)
            scene = Scene(cluster, folder / "photos", folder / "whole", wire, keys)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            scene.restore()
            run_job(scene.job(scene.whole, hooks={"pause": 0}, engine="local", workers=None), Watch())
            yield scene
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextlib.contextmanager
def _s3() -> Iterator[Wire]:
    with s3_server() as (wire, address), mock.patch.dict(os.environ, s3_environment(address)):
        fsspec.filesystem("s3").clear_instance_cache()
        yield wire


def actor_killed(scene: Scene, dice: Random, folder: Path) -> None:
    """SIGKILL to a random actor, one to three times, at random moments."""
    pids = folder / "pids"
    pids.mkdir()
    moments = sorted(dice.sample(range(1, IMAGES - 2), dice.randint(1, 3)))

    def kill() -> None:
        time.sleep(dice.uniform(0, 2 * PAUSE))
        alive = [int(each.name) for each in pids.iterdir() if Path(f"/proc/{each.name}").exists()]
        os.kill(dice.choice(alive), signal.SIGKILL)
        watch.after = next((moment for moment in moments if moment > watch.images), IMAGES + 1)

    watch = Watch(moments[0], kill)
    result = run_job(scene.job(folder / "store", hooks={"pids": str(pids)}), watch)
    scene.check(folder / "store", result)
    assert watch.images == IMAGES


def node_removed_and_one_added(scene: Scene, dice: Random, folder: Path) -> None:
    """A node's processes die all at once, or are asked to; another node comes a moment later."""
    graceful = dice.random() < 0.5

    def exchange() -> None:
        scene.cluster.remove_node(scene.second, allow_graceful=graceful)
        time.sleep(dice.uniform(0, 0.5))
        scene.second = scene.cluster.add_node(wait=False, num_cpus=1, object_store_memory=100 << 20)

    watch = Watch(dice.randint(1, IMAGES - 4), exchange)
    result = run_job(scene.job(folder / "store"), watch)
    scene.check(folder / "store", result)
    assert watch.images == IMAGES


DRIVER = """
import sys
from tests.faults.cluster_faults import Scene, Watch, run_job
photos, out, address = sys.argv[1:]
scene = Scene(None, photos, None, None, [])
run_job(scene.job(out, workers=2, address=address, images_per_shard=2), Watch())
"""


def driver_killed(scene: Scene, dice: Random, folder: Path) -> None:
    """SIGKILL to the driver once something is committed; the job is started again with another number of workers."""
    out = folder / "store"
    command = [sys.executable, "-c", DRIVER, str(scene.photos), str(out), scene.cluster.address]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((out / "manifest").glob("*.json")):
        assert driver.poll() is None, "the driver ended before it committed anything"
        time.sleep(0.01)
    time.sleep(dice.uniform(0, IMAGES * PAUSE / 4))
    driver.kill()
    driver.wait()
    there = len(open_store(out))
    result = run_job(scene.job(out, workers=1), Watch())
    assert there > 0 and result.report.images <= IMAGES - 2
    scene.check(out)


def killing_image(scene: Scene, dice: Random, folder: Path) -> None:
    """An image takes its process along, by a segfault or as the kernel does when memory runs out: found, given up."""
    killer = dice.choice(scene.keys)
    hooks = {"killer": killer, "signal": dice.choice([signal.SIGSEGV, signal.SIGKILL]), "pause": 0}
    watch = Watch()
    result = run_job(scene.job(folder / "store", hooks=hooks, decode_workers=1), watch)
    scene.check(folder / "store", result, {killer: "crashed"})
    assert (watch.images, watch.failed) == (IMAGES, 1)


def hanging_read(scene: Scene, dice: Random, folder: Path) -> None:
    """The bytes of an image never come."""
    key = dice.choice(scene.keys)
    job = scene.job(folder / "store", hooks={"hanging": key, "pause": 0}, workers=1, read_timeout=0.5)
    scene.check(folder / "store", run_job(job, Watch()), {key: "timeout"})


def device_out_of_memory(scene: Scene, dice: Random, folder: Path) -> None:
    """Batches that the device has no room for are halved until they fit."""
    job = scene.job(folder / "store", hooks={"room": dice.randint(1, 3), "pause": 0}, workers=1, batch_size=4)
    scene.check(folder / "store", run_job(job, Watch()))


def disk_full(scene: Scene, dice: Random, folder: Path) -> None:
    """The store's disk fills up: one line, and with more room the same job goes on."""
    with small_disk(dice.randint(8, 24) * 4096) as disk:
        try:
            run_job(scene.job(disk / "store", hooks={"pause": 0}, images_per_shard=2), Watch())
        except StoreError as error:
            told = str(error)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        else:
            told = "the disk was large enough"
        assert "No space left" in told and "\n" not in told, told
        assert not (disk / "store" / "store.json").exists() or verify_store(disk / "store").problems == []
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        run_job(scene.job(disk / "store", hooks={"pause": 0}), Watch())
        scene.check(disk / "store")


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A file system of so many bytes; needs root."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def store_that_drops_requests(scene: Scene, dice: Random, folder: Path) -> None:
    """A store on S3: requests that break off, or are answered with 500 and 503, each a few times."""
    fsspec.filesystem("s3").mkdirs("bucket", exist_ok=True)
    for pattern in ("PUT .*/shards/", "PUT .*/manifest/", "HEAD .*/shards/", "GET .*list-type", "GET .*index.json"):
        scene.wire.fail(pattern, dice.choice(["cut", 500, 503]), times=dice.randint(1, 2))
    out = f"s3://bucket/{dice.getrandbits(64):x}"
    result = run_job(scene.job(out, hooks={"pause": 0}), Watch())
    scene.wire.clear()
    scene.check(out, result)


def clock_that_jumps(scene: Scene, dice: Random, folder: Path) -> None:
    """Actors and the driver see days pass between two looks at the clock, forth and back."""
    with mock.patch("time.time", jumping_clock()):
        result = run_job(scene.job(folder / "store", hooks={"jumping": True, "pause": 0}), Watch())
    scene.check(folder / "store", result)


FAULTS: dict[str, Callable[[Scene, Random, Path], None]] = {
    "an actor killed": actor_killed,
    "a node removed and one added": node_removed_and_one_added,
    "the driver killed": driver_killed,
    "an image that kills its process": killing_image,
    "a hanging read": hanging_read,
    "GPU out of memory (simulated)": device_out_of_memory,
    "disk full": disk_full,
    "a store on S3 that drops requests": store_that_drops_requests,
    "a clock that jumps": clock_that_jumps,
}
