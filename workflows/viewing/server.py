"""The server behind `triptych view`: on this machine only, GET only, nothing but the page's own files and the API."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage import TriptychError
from workflows.viewing.api import Api, answer_error
from workflows.viewing.opened import Opened, ViewError
from workflows.viewing.page import FILES, page, read
from workflows.viewing.pictures import Pictures

LOOPBACK = "127.0.0.1"
HOSTS = [LOOPBACK, "localhost"]  # names that a browser may know this server by; another one is a rebound DNS name
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
OWN = ("same-origin", "none", None)  # where a request may come from: the page, a person, or a program


class Guarded:
    """Sends the headers that keep a browser from doing what the page never does, and refuses other sites' requests."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        request = Request(scope)
        if request.url.path.startswith("/api/") and request.headers.get("sec-fetch-site") not in OWN:
            refused = JSONResponse({"error": "this comes from another site."}, status_code=403)
            await refused(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)


def make_app(stores: list[Opened], pictures: Pictures) -> Starlette:
    """The application over some stores."""
    api = Api(stores, pictures)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        api.close()

    files = [Route(f"/{name}", _file(name), methods=["GET"]) for name in FILES]
    return Starlette(
        routes=[Route("/", _front, methods=["GET"]), *files, *api.routes()],
        middleware=[Middleware(Guarded), Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        exception_handlers={TriptychError: answer_error, KeyError: answer_error},
        lifespan=lifespan,
    )


def _front(request: Request) -> Response:
    return Response(page(), media_type="text/html; charset=utf-8", headers={"Cache-Control": "no-cache"})


def _file(name: str) -> Callable[[Request], Response]:
    kind = "text/css" if name.endswith(".css") else "text/javascript"

    def answer(request: Request) -> Response:
        return Response(read(name), media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})

    return answer


def listen(host: str, port: int) -> socket.socket:
    """A socket on this machine only; port 0 is a free one.

    Raises:
        ViewError: another address is asked for, or the port is taken.
    """
    if host not in HOSTS:
        raise ViewError(
            f"--host {host} is refused: whoever reaches it could read the store. The page is on {LOOPBACK} only; from "
            f"another machine use `ssh -L 8000:{LOOPBACK}:PORT` and open http://localhost:8000."
        )
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((LOOPBACK, port))
        sock.listen(64)  # a browser that is quicker than the server waits, and is not refused
    except (OSError, OverflowError) as error:
        sock.close()
        raise ViewError(f"port {port} cannot be had ({error}); leave --port out for a free one.") from error
    return sock


def serve(app: Starlette, sock: socket.socket) -> None:
    """Answer until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):  # the server has ended already when it raises this
        _server(app).run(sockets=[sock])


@contextlib.contextmanager
def in_background(app: Starlette) -> Iterator[str]:
    """Answer on a thread for as long as the block goes on; yields the address."""
    sock, server = listen(LOOPBACK, 0), _server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{sock.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def _server(app: Starlette) -> Any:
    import uvicorn

    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    return uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **settings))
