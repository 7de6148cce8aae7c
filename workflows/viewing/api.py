"""What the page may ask: each endpoint answers one GET with JSON, or with a picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from storage import PixelRecord, Record, RegionRecord
from workflows.viewing.comparing import record_difference, start_diff
from workflows.viewing.described import described
from workflows.viewing.jobs import Job, Jobs
from workflows.viewing.maps import KINDS, map_facts
from workflows.viewing.neighbours import USUAL, near_facts, search_near
from workflows.viewing.opened import Opened, ViewError
from workflows.viewing.pictures import SIDES, PictureError, Pictures
from workflows.viewing.searching import search, shown_rows, wanted_of

MOST = 100  # images, or errors, of one answer
PREVIEWED = 12  # boxes of an image in a list
FIRST_WAIT = 0.15  # seconds that a search has to end before the page shows that it goes on
KEEP = {"Cache-Control": "private, max-age=60"}  # pictures; what is asked twice is shown at once


class Api:
    """The endpoints over some stores and their images."""

    def __init__(self, stores: list[Opened], pictures: Pictures) -> None:
        self.stores, self.pictures = stores, pictures
        self._searches, self._scans, self._diffs = Jobs(8), Jobs(4), Jobs(2)
        self._map = lru_cache(200)(self._make_map)

    def routes(self) -> list[Route]:
        answers: dict[str, Callable[[Request], Response]] = {
            "stores": self.all_stores,
            "images": self.images,
            "record": self.record,
            "map": self.map,
            "picture": self.picture,
            "pixels": self.pixels,
            "near": self.near,
            "errors": self.errors,
            "diff": self.diff,
            "diff/record": self.diff_of_record,
        }
        return [Route(f"/api/{name}", answer, methods=["GET"]) for name, answer in answers.items()]

    def close(self) -> None:
        """End what still runs."""
        for jobs in (self._searches, self._scans, self._diffs):
            jobs.close()

    def all_stores(self, request: Request) -> Response:
        """Each store's facts, and how far the listing of images is."""
        listing = self.pictures.listing
        images = {"named": self.pictures.name, **(listing.facts() if listing else {})}
        return JSONResponse({"stores": [opened.facts for opened in self.stores], "images": images})

    def images(self, request: Request) -> Response:
        """`count` of the images that a search finds, from number `first` on, and how far it is."""
        opened, asked = self._store(request), request.query_params
        first, count = _number(request, "first", 0), min(MOST, _number(request, "count", 24))
        wanted = wanted_of(
            opened, asked.get("search", ""), asked.get("class", ""), asked.get("attribute", ""), _least(request)
        )
        if wanted.is_all:
            found: Any = range(len(opened.store))
            facts: dict[str, Any] = {"finished": True, "done": len(found), "of": len(found)}
        else:
            job = self._searches.get((opened, wanted), lambda: search(opened.store, wanted))
            job.wait(FIRST_WAIT)
            facts, found = job.facts(), job.result or []
        records = (opened.store.at(at) for at in found[first : first + count])
        items = [described(opened, record, shown_rows(record, wanted, PREVIEWED)) for record in records]
        return JSONResponse({**facts, "found": len(found), "first": first, "items": items})

    def record(self, request: Request) -> Response:
        """One image with all its boxes, or its cells."""
        opened = self._store(request)
        return JSONResponse(described(opened, self._record(opened, request)))

    def map(self, request: Request) -> Response:
        """One map over an image's cells: `kind`, and for "similar" the cell's `row` and `column`."""
        opened, kind = self._store(request), request.query_params.get("kind", "norm")
        record = self._record(opened, request)
        if isinstance(record, RegionRecord | PixelRecord) or kind not in KINDS:
            raise ViewError(f"{opened.view} have no map {kind!r}; grids and patches have {', '.join(KINDS)}.")
        cell = (_number(request, "row", 0), _number(request, "column", 0)) if kind == "similar" else (0, 0)
        if cell[0] >= record.features.shape[0] or cell[1] >= record.features.shape[1]:
            raise ViewError(f"there is no cell {cell} among {record.features.shape[:2]}.")
        return JSONResponse(self._map(self.stores.index(opened), record.key, kind, cell), headers=KEEP)

    def _make_map(self, number: int, key: str, kind: str, cell: tuple[int, int]) -> dict[str, Any]:
        return map_facts(self.stores[number].store[key].features, kind, cell)

    def picture(self, request: Request) -> Response:
        """An image of the source, its longer side at most `side`."""
        side = _number(request, "side", SIDES[0])
        if side not in SIDES:
            raise ViewError(f"side {side} is none of {SIDES}.")
        return Response(self.pictures.jpeg(_key(request), side), media_type="image/jpeg", headers=KEEP)

    def pixels(self, request: Request) -> Response:
        """The pixels of a record, as they are stored."""
        from PIL import Image

        opened = self._store(request)
        record = self._record(opened, request)
        if not isinstance(record, PixelRecord):
            raise ViewError(f"{opened.name} holds {opened.view}, not pixels.")
        buffer = io.BytesIO()
        Image.fromarray(record.pixels).save(buffer, "PNG", compress_level=1)
        return Response(buffer.getvalue(), media_type="image/png", headers=KEEP)

    def near(self, request: Request) -> Response:
        """The regions nearest to region `row` of an image, as far as the scan of the first `images` has come."""
        opened, row = self._store(request), _number(request, "row", 0)
        record = self._record(opened, request)
        if not isinstance(record, RegionRecord) or row >= len(record.boxes):
            raise ViewError(f"{record.key!r} in {opened.name} has no region {row}.")
        store = opened.store
        position, images = store.catalog.position(record.key), _number(request, "images", USUAL)
        asked = (opened, position, row, images)
        job = self._scans.get(asked, lambda: search_near(store, position, row, images))
        job.wait(FIRST_WAIT)
        return JSONResponse({**job.facts(), "all": len(store), "near": near_facts(opened, job.result or [])})

    def errors(self, request: Request) -> Response:
        """`count` of the failed images, from number `first` on, with their reasons counted."""
        opened, asked = self._store(request), request.query_params
        text, reason = asked.get("search", "").casefold(), asked.get("reason", "")
        first, count = _number(request, "first", 0), min(MOST, _number(request, "count", 24))
        rows = [
            row
            for row in opened.errors
            if (not reason or row.reason == reason) and text in f"{row.key} {row.message}".casefold()
        ]
        items = [asdict(row) for row in rows[first : first + count]]
        return JSONResponse({"found": len(rows), "first": first, "items": items, "finished": True})

    def diff(self, request: Request) -> Response:
        """How far two stores are apart, once the comparison that this starts has ended."""
        first, second = self._store(request, "first"), self._store(request, "second")
        job: Job = self._diffs.get((first, second), lambda: start_diff(first, second))
        job.wait(FIRST_WAIT)
        return JSONResponse({**job.facts(), "difference": job.result})

    def diff_of_record(self, request: Request) -> Response:
        first, second = self._store(request, "first"), self._store(request, "second")
        return JSONResponse(record_difference(first, second, _key(request)))

    def _store(self, request: Request, name: str = "store") -> Opened:
        number = _number(request, name, 0)
        if number >= len(self.stores):
            raise ViewError(f"there is no store {number} among {len(self.stores)}.")
        return self.stores[number]

    def _record(self, opened: Opened, request: Request) -> Record:
        return opened.store[_key(request)]


def _key(request: Request) -> str:
    key = request.query_params.get("key")
    if key is None:
        raise ViewError("the request names no key.")
    return key


def _number(request: Request, name: str, usual: int) -> int:
    text = request.query_params.get(name, str(usual))
    if not text.isdecimal() or len(text) > 12:
        raise ViewError(f"{name} {text!r} is no number.")
    return int(text)


def _least(request: Request) -> float:
    text = request.query_params.get("least") or "0"
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise ViewError(f"the least score {text!r} is no number from 0 to 1.")
    return found


def answer_error(request: Request, error: Exception) -> Response:
    """An error as JSON: 404 for what is not there, 422 for what cannot be shown."""
    missing = isinstance(error, KeyError)
    status = 404 if missing or isinstance(error, PictureError) else 422
    return JSONResponse({"error": str(error.args[0]) if missing else str(error)}, status_code=status)
