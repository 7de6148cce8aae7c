"""What a Ray job tells the dashboard and whoever scrapes the cluster: counters and gauges, sent by the driver."""

from __future__ import annotations

import time
from typing import Protocol

from ray.util.metrics import Counter, Gauge

from pipeline.unit import OnImages, UnitReport

RATE_OVER = 10.0  # seconds that images/s is averaged over


class _Standing(Protocol):
    @property
    def standing(self) -> int: ...


class Metrics:
    """Metrics of one job; Ray adds the prefix `ray_`, and `_total` to counters.

    triptych_images             finished images, failed ones included
    triptych_failures           failed images, by reason, as their units are committed
    triptych_images_per_second  over the last ten seconds
    triptych_stage_seconds      by stage, summed over threads and actors, as units are committed
    triptych_bytes              written into shards
    triptych_actors             actors that are ready
    """

    def __init__(self, view: str, pool: _Standing) -> None:
        tags = {"view": view}
        self._pool = pool
        self._images = Counter("triptych_images", "Finished images", ("view",))
        self._failures = Counter("triptych_failures", "Failed images by reason", ("view", "reason"))
        self._seconds = Counter("triptych_stage_seconds", "Seconds by stage, summed over threads", ("view", "stage"))
        self._bytes = Counter("triptych_bytes", "Bytes written into shards", ("view",))
        self._rate = Gauge("triptych_images_per_second", "Images per second", ("view",))
        self._actors = Gauge("triptych_actors", "Actors that are ready", ("view",))
        for metric in (self._images, self._failures, self._seconds, self._bytes, self._rate, self._actors):
            metric.set_default_tags(tags)
        self._since, self._lately = time.monotonic(), 0

    def counting(self, on_images: OnImages) -> OnImages:
        """`on_images`, and the metrics with it."""

        def count(images: int, failed: int) -> None:
            on_images(images, failed)
            if images:
                self._images.inc(images)
            self._lately += images
            passed = time.monotonic() - self._since
            if passed >= RATE_OVER:
                self._rate.set(self._lately / passed)
                self._since, self._lately = time.monotonic(), 0
            self._actors.set(self._pool.standing)

        return count

    def finished(self, report: UnitReport) -> None:
        """Add what a unit's report tells."""
        for reason, count in report.reasons.items():
            self._failures.inc(count, {"reason": reason})
        for stage, seconds in report.seconds.items():
            if seconds > 0:
                self._seconds.inc(seconds, {"stage": stage})
        if report.bytes:
            self._bytes.inc(report.bytes)
