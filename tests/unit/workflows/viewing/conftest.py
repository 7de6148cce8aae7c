"""The stores that tests of the page share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.view_data import Stores, client, make_stores


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return make_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def page(stores: Stores) -> Iterator[TestClient]:
    """The server over all of them, in the order of `Stores.all`, with the images."""
    with client(stores.all, stores.images) as made:
        yield made
