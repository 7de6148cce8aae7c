"""What the server answers: lists and searches, records, maps, neighbours, errors, differences, pictures."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from storage import open_store
from tests.view_data import KEYS, SIZE, Stores, client

REGIONS, HDF5, NARROW, ARCHIVE, GRID, PATCHES, PIXELS = range(7)


def got(page: TestClient, what: str, **query: Any) -> dict[str, Any]:
    """The answer, once all of it is there."""
    for _ in range(1000):
        answer = page.get(f"/api/{what}", params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        if found.get("finished", True):
            return found
        time.sleep(0.02)
    raise AssertionError("it never ends")


def refused(page: TestClient, what: str, status: int = 422, **query: Any) -> str:
    answer = page.get(f"/api/{what}", params=query)
    assert answer.status_code == status
    return str(answer.json()["error"])


def keys(page: TestClient, **query: Any) -> list[str]:
    return [item["key"] for item in got(page, "images", **query)["items"]]


def test_stores_tell_what_they_are(page: TestClient) -> None:
    found = got(page, "stores")
    assert [each["view"] for each in found["stores"]] == ["regions"] * 4 + ["grid", "patches", "pixels"]
    first = found["stores"][REGIONS]
    assert (first["records"], first["rows"], first["errors_by_reason"]) == (5, 15, {"no_boxes": 1, "not_an_image": 1})
    assert first["classes"][:2] == ["cat", "dog"] and "class_ids" in first["fields"]
    assert found["images"]["finished"] and not found["images"].get("error")


@pytest.mark.parametrize("store", [REGIONS, HDF5, NARROW, ARCHIVE])
def test_a_search_finds_by_key_class_attribute_and_score(page: TestClient, store: int) -> None:
    assert sorted(keys(page, store=store)) == sorted(KEYS)
    assert keys(page, store=store, search="CATS/") == ["cats/one", "cats/two"]
    assert sorted(keys(page, store=store, **{"class": "dog"})) == sorted(KEYS[2:])
    assert keys(page, store=store, **{"class": "cat", "attribute": "blue"}) == ["cats/two"]
    assert sorted(keys(page, store=store, least=0.88)) == ["cats/one", "cats/two", "dogs/one"]
    # one box must have both: the eye's score is 0.5, another box has more
    assert keys(page, store=store, **{"class": "eye", "least": 0.6}) == []
    assert keys(page, store=store, search="two", **{"class": "dog"}) == ["dogs/two"]


def test_a_list_comes_in_pages_and_shows_the_boxes_that_were_searched(page: TestClient) -> None:
    found = got(page, "images", first=3, count=1)
    assert (found["found"], [item["key"] for item in found["items"]]) == (5, [KEYS[3]])
    [item] = got(page, "images", search="cats/one", **{"class": "eye"})["items"]
    assert (item["kept"], [box["label"] for box in item["boxes"]]) == (3, ["eyes,eye"])


def test_what_cannot_be_searched_is_told(page: TestClient) -> None:
    assert "did you mean cat?" in refused(page, "images", **{"class": "caat"})
    assert "does not name its classes" in refused(page, "images", store=GRID, **{"class": "cat"})
    assert "without class_ids" in refused(page, "images", store=GRID, **{"class": "1"})
    assert "from 0 to 1" in refused(page, "images", least="nan")
    assert "'x' is no number" in refused(page, "images", first="x")
    assert "no store 7" in refused(page, "images", store=7)


@pytest.mark.parametrize("store", [REGIONS, HDF5, NARROW, ARCHIVE])
def test_a_record_has_boxes_with_names(page: TestClient, store: int) -> None:
    record = got(page, "record", store=store, key="cats/two")
    assert (record["height"], record["width"], record["sized"]) == (*SIZE, True)
    first, second = record["boxes"][:2]
    assert first["box"] == [0, 0, 40, 30]
    assert (first["label"], first["score"], first["attribute"]) == ("cat", 0.89, "blue")
    assert second["attribute"] == "", "-1 is no attribute"


def test_a_key_that_is_not_there_is_told_by_its_error_or_the_nearest_key(page: TestClient) -> None:
    assert "nearest is 'cats/one'" in refused(page, "record", 404, key="cats/on")
    assert "failed when it was extracted" in refused(page, "record", 404, key="bad/late")
    assert "no key" in refused(page, "record")


@pytest.mark.parametrize("store", [GRID, PATCHES])
def test_maps_are_of_the_features(page: TestClient, stores: Stores, store: int) -> None:
    record = got(page, "record", store=store, key="cats/one")
    assert record["cells"] == [3, 4] and record["frame"] == [0, 0, 128, 96]
    features = open_store(stores.all[store])["cats/one"].features.astype(np.float64)
    lengths = np.linalg.norm(features, axis=-1)
    norm = got(page, "map", store=store, key="cats/one", kind="norm")
    assert norm["values"] == pytest.approx(lengths.reshape(-1).tolist(), rel=1e-3)
    cosines = features @ features[2, 1] / lengths / lengths[2, 1]
    similar = got(page, "map", store=store, key="cats/one", kind="similar", row=2, column=1)
    assert similar["values"] == pytest.approx(cosines.reshape(-1).tolist(), abs=1e-3)
    assert np.shape(got(page, "map", store=store, key="cats/one", kind="pca")["colours"]) == (12, 3)
    assert "no cell (3, 0)" in refused(page, "map", store=store, key="cats/one", kind="similar", row=3)
    assert "have norm, pca, similar" in refused(page, "map", store=store, key="cats/one", kind="heat")


@pytest.mark.parametrize("store", [REGIONS, HDF5, NARROW, ARCHIVE])
def test_the_nearest_regions_are_those_of_a_plain_computation(page: TestClient, stores: Stores, store: int) -> None:
    opened = open_store(stores.all[store], "float32")
    rows = [(key, row) for key in opened for row in range(3)]
    features = np.concatenate([opened[key].features for key in opened]).astype(np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit[rows.index(("dogs/one", 0))]
    wanted = [rows[at] for at in np.argsort(-cosines)][1:]
    found = got(page, "near", store=store, key="dogs/one", row=0)
    assert [(each["key"], each["row"]) for each in found["near"][:4]] == wanted[:4]
    assert [each["cosine"] for each in found["near"]] == pytest.approx(np.sort(cosines)[::-1][1:].tolist(), abs=1e-3)
    assert found["near"][0]["boxes"][0]["label"] == "dog" and (found["of"], found["all"]) == (5, 5)


def test_the_search_for_neighbours_is_bounded_and_says_so(page: TestClient) -> None:
    found = got(page, "near", key="dogs/one", row=0, images=2)
    assert (found["of"], found["all"]) == (2, 5) and {each["key"] for each in found["near"]} == set(KEYS[:2])
    assert "no region 3" in refused(page, "near", key="dogs/one", row=3)


def test_errors_are_filtered_and_shown_where_their_bytes_are_images(page: TestClient) -> None:
    assert [row["key"] for row in got(page, "errors")["items"]] == ["bad/text", "bad/late"]
    assert [row["key"] for row in got(page, "errors", reason="no_boxes")["items"]] == ["bad/late"]
    assert got(page, "errors", search="BAD/TEXT")["found"] == 1
    assert page.get("/api/picture", params={"key": "bad/late"}).status_code == 200
    assert "not_an_image" in refused(page, "picture", 404, key="bad/text")


def test_two_stores_are_compared_whole_and_image_by_image(page: TestClient) -> None:
    same = got(page, "diff", first=REGIONS, second=HDF5)["difference"]
    assert same["same"] and same["identical"] == 5
    far = got(page, "diff", first=REGIONS, second=NARROW)["difference"]
    assert not far["same"] and far["fields"]["boxes"]["equal"] == 5 and far["fields"]["features"]["equal"] == 0
    one = got(page, "diff/record", first=REGIONS, second=NARROW, key="cats/one")
    assert one["records"] == 1 and 0 < one["fields"]["features"]["largest"] < 0.1
    answer = page.get("/api/diff", params={"first": REGIONS, "second": GRID}).json()
    assert "nothing to compare" in answer["error"] and answer["finished"]


def test_pictures_are_the_images_made_small(page: TestClient, stores: Stores) -> None:
    picture = Image.open(io.BytesIO(page.get("/api/picture", params={"key": "cats/two", "side": 320}).content))
    assert picture.size == SIZE[::-1]
    assert np.abs(np.asarray(picture).reshape(-1, 3).mean(axis=0) - [40, 100, 200]).max() < 4
    pixels = page.get("/api/pixels", params={"store": PIXELS, "key": "cats/one"}).content
    stored = open_store(stores.pixels)["cats/one"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pixels))), stored.features)
    assert "side 9" in refused(page, "picture", key="cats/two", side=9)
    assert "not pixels" in refused(page, "pixels", store=GRID, key="cats/one")


def test_without_images_everything_else_is_there(stores: Stores) -> None:
    with client([stores.regions]) as page:
        assert keys(page) == list(KEYS)
        assert got(page, "stores")["images"] == {"named": None}
        assert "--images" in refused(page, "picture", 404, key="cats/one")
