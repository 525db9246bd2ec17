"""The local server's addresses: the page, what there is to see as JSON, its files, details of fields, news of a fit."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import mimetypes
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from scanfield.errors import InputError
from scanfield.view.coarse import coarse_image
from scanfield.view.detail import render_box, render_whole
from scanfield.view.guard import Guard
from scanfield.view.items import IMAGE, Item, description, events, find, summary
from scanfield.view.layers import Layer
from scanfield.view.measured import Measurements, pictures
from scanfield.view.raster import encode
from scanfield.view.sources import Sources
from scanfield.view.thumbnail import thumbnail

POLL_S = 0.5
PAGE = "static"
UNBUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>scanfield</title>
<body style="font:16px system-ui;max-width:40rem;margin:4rem auto"><h1>The page is not built</h1>
<p>This is a source checkout, and the viewer's page is made with Node: run <code>make viewer</code> in it (Node 20 or
newer). Installed packages contain the page. Everything else of scanfield works without it; each run's
<code>report.html</code> opens in any browser.</p></body></html>"""


class View:
    """The server's side of the page.

    Args:
        paths: runs, folders of runs and files to show; nothing outside them is ever read.
        stop: ends the fit that writes the shown run, or None if it is not ours to end.
    """

    def __init__(self, paths: Sequence[Path], *, stop: Callable[[], None] | None = None) -> None:
        self.paths, self.stop = tuple(paths), stop
        self.sources, self.kept = Sources(), Measurements()
        self.known: dict[str, Path] = {}  # where items were found, by key
        self.one_at_a_time = anyio.CapacityLimiter(1)

    def app(self, token: str, port: int) -> Starlette:
        """The ASGI application for one address."""
        routes = [
            Route("/", self.page),
            Route("/assets/{name}", self.asset),
            Route("/api/items", self.items),
            Route("/api/items/{key}", self.item),
            Route("/api/items/{key}/thumbnail.png", self.thumbnail),
            Route("/api/items/{key}/layers/{name}", self.layer),
            Route("/api/items/{key}/figures/{name}", self.figure),
            Route("/api/items/{key}/report.html", self.report),
            Route("/api/items/{key}/detail.nii.gz", self.detail),
            Route("/api/items/{key}/measurements", self.measurements),
            Route("/api/items/{key}/preview", self.preview),
            Route("/api/items/{key}/events", self.events),
            Route("/api/items/{key}/stop", self.end, methods=["POST"]),
        ]
        guard = Middleware(Guard, token=token, port=port, writable=("/stop",))
        return Starlette(routes=routes, middleware=[guard], exception_handlers={InputError: _said, _Missing: _missing})

    async def page(self, request: Request) -> Response:
        """The page itself, or how to build it."""
        page = files(__package__) / PAGE / "index.html"
        return HTMLResponse(page.read_text(encoding="utf-8") if page.is_file() else UNBUILT)

    async def asset(self, request: Request) -> Response:
        """The page's scripts and styles, compressed: the server may stand at the other end of a slow line."""
        folder = Path(str(files(__package__) / PAGE / "assets"))
        known = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
        path = _among(known, request.path_params["name"])
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return FileResponse(path)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return Response(_gzipped(path), media_type=kind, headers={"Content-Encoding": "gzip"})

    async def items(self, request: Request) -> Response:
        """What there is to see."""
        items = await self._found()
        return JSONResponse({"items": [summary(item) for item in items], "live": self.stop is not None})

    async def item(self, request: Request) -> Response:
        """All facts of one item."""
        item = await self._item(request)
        return JSONResponse(description(item) | {"stoppable": self._stoppable(item)})

    async def thumbnail(self, request: Request) -> Response:
        """A small picture of an item; nothing where it has none, which is no error."""
        png = await anyio.to_thread.run_sync(thumbnail, await self._item(request))
        if png is None:
            return Response(status_code=204)
        return Response(png, media_type="image/png")

    async def layer(self, request: Request) -> Response:
        """One of its volumes or surfaces as the file is, what a compressed file holds, or a first look: `?coarse=1`."""
        item = await self._item(request)
        layer: Layer = _among({layer.name: layer for layer in item.layers}, request.path_params["name"])
        if layer.rendered:
            return await self._rendered(request, lambda: render_whole(self.sources.of(item), IMAGE))
        if request.query_params.get("coarse"):
            data = await anyio.to_thread.run_sync(coarse_image, layer.path)
            return Response(data, media_type="application/octet-stream")
        return FileResponse(layer.path, media_type="application/octet-stream")

    async def figure(self, request: Request) -> Response:
        """One of its report's figures."""
        item = await self._item(request)
        return FileResponse(_among({path.name: path for path in item.figures}, request.path_params["name"]))

    async def report(self, request: Request) -> Response:
        """A run's report."""
        path = (await self._item(request)).path / "report.html"
        if not path.is_file():
            raise _Missing
        return FileResponse(path)

    async def detail(self, request: Request) -> Response:
        """A box of the field, rendered now: `centre=x,y,z&size=mm[&voxels=n][&what=name]`."""
        item = await self._item(request)
        query = request.query_params
        try:
            centre = np.array([float(v) for v in query["centre"].split(",")])
            size, per_axis = float(query["size"]), int(query.get("voxels", "128"))
        except (KeyError, ValueError):
            raise InputError("a detail is asked for as centre=x,y,z&size=mm[&voxels=n][&what=name]") from None
        if centre.shape != (3,):
            raise InputError("a detail's centre has three coordinates")
        what = query.get("what", IMAGE)
        return await self._rendered(request, lambda: render_box(self.sources.of(item), what, centre, size, per_axis))

    async def measurements(self, request: Request) -> Response:
        """Measured, predicted and what is left, as a message of `view.raster`: `[series=name][&index=k]`."""
        item, query = await self._item(request), request.query_params
        try:
            index = int(query.get("index", "0"))
        except ValueError:
            raise InputError("measurements are asked for as series=name&index=k") from None

        def work() -> bytes:
            return encode(*pictures(self.kept.of(item.path, item.facts), query.get("series"), index))

        return Response(await anyio.to_thread.run_sync(work), media_type="application/octet-stream")

    async def preview(self, request: Request) -> Response:
        """What a fit looks like now, as a message of `view.raster`."""
        path = (await self._item(request)).preview
        if path is None:
            raise _Missing
        return FileResponse(path, media_type="application/octet-stream")

    async def events(self, request: Request) -> Response:
        """Steps and status of a run, as server-sent events."""
        item = await self._item(request)
        return StreamingResponse(self._news(request, item), media_type="text/event-stream")

    async def end(self, request: Request) -> Response:
        """Ends the fit."""
        item = await self._item(request)
        if not self._stoppable(item) or self.stop is None:
            raise InputError("this run is not being fitted by the program that shows it", where=item.title)
        self.stop()
        return JSONResponse({"stopping": True})

    async def _rendered(self, request: Request, work: Callable[[], bytes]) -> Response:
        """Renderings wait for each other: two would only be slower, and hold more memory."""
        async with self.one_at_a_time:
            if await request.is_disconnected():  # the view has moved on while this waited
                return Response(status_code=499)
            data = await anyio.to_thread.run_sync(work)
        return Response(data, media_type="application/octet-stream")

    def _stoppable(self, item: Item) -> bool:
        return self.stop is not None and item.status == "running"

    async def _found(self) -> list[Item]:
        items = await anyio.to_thread.run_sync(find, self.paths)
        self.known = {item.key: item.path for item in items}
        return items

    async def _item(self, request: Request) -> Item:
        """The item as it is now; only its own folder is read again."""
        key = request.path_params["key"]
        if key not in self.known:
            await self._found()
        return await self._read(_among(self.known, key))

    async def _read(self, path: Path) -> Item:
        return (await anyio.to_thread.run_sync(find, [path]))[0]

    async def _news(self, request: Request, item: Item) -> AsyncIterator[str]:
        """Steps in bunches as they are logged, word of new pictures, and the status whenever it changes; ends with the
        fit."""
        offset, status, drawn = 0, "", 0
        while not await request.is_disconnected():
            steps, offset = await anyio.to_thread.run_sync(events, item.path, offset)
            if steps:
                yield _event("steps", steps)
            current = await self._read(item.path)
            if current.preview is not None and (when := _written(current.preview)) != drawn:
                drawn = when
                yield _event("preview", str(when))  # too long for a number in JavaScript
            now = current.status
            if now != status:
                status = now
                yield _event("status", status)
            if status != "running" and not (status == "problem" and self.stop is not None):
                return
            await asyncio.sleep(POLL_S)


@functools.lru_cache(maxsize=32)
def _gzipped(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), compresslevel=6)


class _Missing(Exception):
    """There is nothing at this address."""


def _among(known: dict[str, Any], name: str) -> Any:
    if name not in known:
        raise _Missing
    return known[name]


def _written(path: Path) -> int:
    """When a file was written, ns; 0 if it is gone by now."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def _said(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    said = f"{error.what}; {error.fix}" if error.fix else error.what
    return JSONResponse({"error": said}, 422)


async def _missing(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "there is nothing at this address"}, 404)
