"""The Ray engine: the same units on a pool of actors. Ray is known here and in the files beside this one only.

Units and reports travel; pixels and features never do: an actor reads, decodes, extracts, writes and commits. A unit
commits once, so that running it again, whatever died, is harmless (docs/decisions/0008-actors-of-our-own.md).
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

from extractors import ConfigError, ExtractorConfig

# Read when ray is imported. Workers run in the environment that started the job: by default Ray would rebuild it for
# every job started through `uv run`. The log level keeps notes about restarts from the terminal.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

try:
    import ray
except ModuleNotFoundError as error:
    if error.name != "ray":
        raise
    raise ConfigError("Ray is not installed; `pip install 'triptych[ray]'`, or use --engine local.") from error

import ray._private.worker
import ray.exceptions
from ray._private import ray_constants
from ray._private.utils import read_ray_address

from extractors.configs import NetworkConfig
from extractors.views import make_views
from pipeline.batching import largest
from pipeline.cluster_actor import Actor
from pipeline.cluster_metrics import Metrics
from pipeline.cluster_pool import Pool, Size, short
from pipeline.config import EngineConfig, ExtractJob
from pipeline.feeding import most_begun
from pipeline.plan import Plan
from pipeline.sources import ImageRef
from pipeline.unit import OnImages, UnitReport, batches_at_once, open_writers, units_at_once
from storage import ErrorRow, TriptychError
from storage.secrets import shown

ACTORS_WITHIN = 900  # seconds until the pool must stand; nodes that have to be started first take minutes
ANSWER_WITHIN = 10  # seconds for a cluster to answer at its address


class RayEngine:
    """Runs a plan on a pool of actors; attributes as of `LocalEngine`.

    Raises:
        TriptychError: the extractor cannot be built, or the cluster lacks what was asked for.
    """

    def __init__(self, job: ExtractJob) -> None:
        # The devices are the actors'; here the network is built only to know what it is, and let go again.
        views = make_views(job.with_views(partial(_on, device="cpu")).views)
        self.specs, self.vocabularies = views.specs, views.vocabularies
        del views
        gc.collect()
        self._job = job
        self._started_here = not ray.is_initialized()
        connect(job.engine.address)
        self.device = _device(job)
        self.slots = _pool_size(job, self.device)

    def run(self, plan: Plan, on_images: OnImages) -> Iterator[UnitReport]:
        """Yield a report a unit, in the order they finish.

        Raises:
            TriptychError: an actor met an error that concerns the whole job, or there are no actors to be had.
        """
        if not plan.units:
            return
        config = self._job.engine
        size = Size(self.slots, config.min_workers or self.slots, ACTORS_WITHIN, units_at_once(self._on_gpu))
        pool = Pool(self._starter(), plan.units, size, self._window(), self._give_up)
        metrics = Metrics(",".join(self.specs), pool)
        try:
            for report in pool.run(metrics.counting(on_images)):
                metrics.finished(report)
                yield report
        except ray.exceptions.RayError as error:
            raise TriptychError(f"the Ray job failed: {last_line(error)}. What is committed is kept.") from error

    def close(self) -> None:
        """Leave the cluster; a local one that this engine started ends."""
        if self._started_here:
            ray.shutdown()

    @property
    def _on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def _starter(self) -> Callable[[], Any]:
        """What asks Ray for one more actor."""
        gpu, config = self._on_gpu, self._job.engine
        device = "cuda:0" if gpu else "cpu"
        job = ray.put(self._job.with_absolute_paths().with_views(partial(_on, device=device)))
        kind = ray.remote(Actor).options(
            num_cpus=config.cpus_per_worker,
            num_gpus=config.gpus_per_worker if gpu else 0,
            max_restarts=0,  # the pool starts another one, wherever there is room, and knows what the dead one did
            max_task_retries=0,
            max_concurrency=units_at_once(gpu) + 1,  # and a question how it is
        )
        return lambda: kind.remote(job)

    def _window(self) -> int:
        """Images of a unit that an actor has under way at once, from the one being read to the one being written."""
        config, on_gpu = self._job.engine, self._on_gpu
        networks = batches_at_once(on_gpu, ceil(config.cpus_per_worker))
        return most_begun(largest(config.batch_size, on_gpu), networks, config.decode_threads(on_gpu))

    def _give_up(self, ref: ImageRef, cause: str) -> None:
        """Commit the error row of an image that kills whoever works on it."""
        message = f"the process that worked on this image alone died, twice: {short(cause)}"
        for store in open_writers(self._job, self).values():
            with store.unit([ref.key], again=True) as unit:
                unit.fail(ErrorRow(ref.key, shown(ref.uri), "decode", "crashed", message))
                unit.commit()


def _on(config: ExtractorConfig, device: str) -> ExtractorConfig:
    return replace(config, device=device) if isinstance(config, NetworkConfig) else config


def connect(address: str | None) -> None:
    """Join the cluster at an address as of `EngineConfig.address`, unless this process is in one.

    Raises:
        ConfigError: nobody answers there.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or _left_over()
    if address and address not in ("auto", "local"):
        _check_answers(address)
    # Ray would print a paragraph about each lost process and node on stdout; the pool says so in a line on stderr.
    ray._private.worker.listen_error_messages = lambda worker, threads_stopped: None
    try:
        with _on_loopback() if address == "local" else nullcontext():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=None)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _unreachable(address, last_line(error)) from error


def _left_over() -> str | None:
    """A fresh local cluster where the one that Ray remembers here is gone: it would look for that one for minutes."""
    remembered = read_ray_address()
    try:
        _check_answers(remembered or "")
    except ConfigError:
        return "local"
    return None if remembered else "local"


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A cluster that is started meanwhile listens on this machine only: whoever reaches its ports can run code.

    Ray has this as its way of life on Windows and macOS, and no setting for it elsewhere.
    """
    name, usual = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    before = os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = usual
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _check_answers(address: str) -> None:
    """Look whether somebody listens there: Ray itself would try for minutes.

    Raises:
        ConfigError: nobody does, or the address is of Ray Client, whose proxy cannot carry an actor's notes.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address} is of Ray Client, which is not supported; use `ray job submit`, or HOST:6379 from a "
            "node of the cluster."
        )
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_WITHIN).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address, last_line(error)) from error


def _unreachable(address: str | None, trouble: str) -> ConfigError:
    where = f"at {address}" if address else "here"
    return ConfigError(f"no Ray cluster can be reached {where} ({trouble}); start one or change --address.")


def _device(job: ExtractJob) -> str:
    """What the actors run on: a GPU each where the cluster has any and the job does not say otherwise."""
    networks = [config for config in job.views.values() if isinstance(config, NetworkConfig)]
    if not networks:
        return "cpu"
    return cluster_device(networks[0].device)


def cluster_device(wanted: str) -> str:
    """The device that a name means on the cluster that was joined.

    Raises:
        ConfigError: a GPU was asked for and there is none.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if wanted == "auto":
        return "cuda" if gpus else "cpu"
    if wanted.startswith("cuda") and not gpus:
        raise ConfigError(
            f"--device {wanted} was asked for, but the Ray cluster has no GPU; pass --device cpu or add GPU nodes."
        )
    return wanted


def _pool_size(job: ExtractJob, device: str) -> int:
    """How many actors at most.

    Raises:
        ConfigError: more than there is room for; with --min-workers the cluster may have to grow first.
    """
    config, kind, each = job.engine, "CPU", job.engine.cpus_per_worker
    if device.startswith("cuda"):
        kind, each = "GPU", config.gpus_per_worker
    there = float(ray.cluster_resources().get(kind, 0))
    wanted = config.workers or max(1, _places_now(config, device), config.min_workers or 1)
    if config.min_workers is None and wanted * each > there:
        need = f"a {kind}" if each == 1 else f"{each:g} {kind}s"
        raise ConfigError(f"--workers {wanted} need {need} each, and the Ray cluster has {there:g}.")
    cpus = float(ray.cluster_resources().get("CPU", 0))
    if config.decode_on == "nodes" and config.min_workers is None and cpus < wanted * config.cpus_per_worker + 1:
        raise ConfigError(
            f"--decode-on nodes needs CPUs beside those of the actors: {wanted} actors take "
            f"{wanted * config.cpus_per_worker:g} of the {cpus:g}; lower --workers or add nodes."
        )
    return wanted


def _places_now(config: EngineConfig, device: str) -> int:
    """Actors that the nodes that are there now have room for, were they idle."""
    each = {"CPU": config.cpus_per_worker} | ({"GPU": config.gpus_per_worker} if device.startswith("cuda") else {})
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(kind, 0) / amount) for kind, amount in each.items()) for node in nodes)


def last_line(error: BaseException) -> str:
    """What an error of Ray says, without the traces that it carries along."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
