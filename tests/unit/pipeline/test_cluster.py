"""Reaching a cluster, or saying at once that there is none; and what a node needs to decode for another."""

from __future__ import annotations

import pickle
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from extractors import ConfigError, GridConfig, RegionConfig, make_extractor, read_image
from extractors.base import Prepared
from extractors.configs import ConvConfig
from extractors.regions import RegionExtractor
from extractors.views import Views, make_views, without_weights
from pipeline import cluster
from tests.helpers import write_photos


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def without_ray() -> Iterator[None]:
    """What other tests of this process share is left: a Ray that runs is the one to use, whatever address is given."""
    cluster.ray.shutdown()
    yield
    assert not cluster.ray.is_initialized()


@pytest.mark.usefixtures("without_ray")
def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    address, began = f"127.0.0.1:{closed_port()}", time.monotonic()
    with pytest.raises(ConfigError, match=f"no Ray cluster can be reached at {address} .*start one or change"):
        cluster.connect(address)
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(("address", "words"), [("ray://head:10001", "Ray Client"), ("head:port", "no Ray cluster")])
def test_addresses_that_cannot_be_right_are_refused(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cluster.connect(address)


def test_a_cluster_that_ray_remembers_and_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "read_ray_address", lambda: f"127.0.0.1:{closed_port()}")
    assert cluster._left_over() == "local"
    monkeypatch.setattr(cluster, "read_ray_address", lambda: None)
    assert cluster._left_over() == "local"  # none is remembered: a fresh one, on loopback
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(cluster, "read_ray_address", lambda: f"127.0.0.1:{server.getsockname()[1]}")
        assert cluster._left_over() is None


@pytest.mark.parametrize("kind", [RegionConfig, GridConfig])
def test_what_travels_to_decode_is_small_and_prepares_the_same(kind: type[ConvConfig], tmp_path: Path) -> None:
    [key] = write_photos(tmp_path, 1)
    image = read_image(tmp_path / f"{key}.jpg")
    views = make_views({"view": kind(weights="random:0", width_divisor=8, shorter=64, longer=100, device="cpu")})
    sent = pickle.dumps(without_weights(views))
    assert len(sent) < 200_000 < len(pickle.dumps(views)) / 3
    here, there = (each.prepare(key, image)["view"] for each in (views, pickle.loads(sent)))
    assert isinstance(here, Prepared) and isinstance(there, Prepared)
    assert (here.image_size, here.scale) == (there.image_size, there.scale)
    np.testing.assert_array_equal(here.pixels.numpy(), there.pixels.numpy())
    assert not isinstance(views.extract([{"view": here}])[0]["view"], Exception)  # the original still works


def test_what_travels_holds_no_checkpoint() -> None:
    extractor = make_extractor(RegionConfig(weights="random:0", width_divisor=8, shorter=64, longer=100, device="cpu"))
    assert isinstance(extractor, RegionExtractor)
    found = replace(extractor.loaded.checkpoint, tensors={"heavy": torch.zeros(1_000_000)})
    extractor.loaded = replace(extractor.loaded, checkpoint=found)
    assert len(pickle.dumps(without_weights(Views({"regions": extractor})))) < 200_000
    assert extractor.loaded.checkpoint.tensors is not None
