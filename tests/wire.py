"""A network that fails as told, between a client and the application of a server."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class Wire:
    """What lies between client and server: notes every request, and does to chosen ones what `faults` says.

    faults    (method and path as a pattern, "cut", "stop" or a status, how often)
    requests  method and path with bytes that were sent back
    busiest   most requests that were under way at once, while `slow` seconds were added to each
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.clear()

    def clear(self) -> None:
        self.faults: list[list[Any]] = []
        self.requests: list[tuple[str, int]] = []
        self.slow, self.busy, self.busiest = 0.0, 0, 0
        self._lock = threading.Lock()

    def fail(self, pattern: str, how: str | int, times: float = float("inf")) -> None:
        self.faults.append([pattern, how, times])

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        what = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        with self._lock:
            self.busy += 1
            self.busiest = max(self.busy, self.busiest)
            how = self._fault(what)
        try:
            time.sleep(self.slow)
            return self._answered(what, how, environ, start)
        finally:
            with self._lock:
                self.busy -= 1

    def _fault(self, what: str) -> str | int | None:
        for fault in self.faults:
            if fault[2] > 0 and re.search(fault[0], what):
                fault[2] -= 1
                return fault[1]
        return None

    def _answered(self, what: str, how: str | int | None, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if how == "cut":  # in the middle of an upload, or before any answer
            environ["wsgi.input"].read(min(100, int(environ.get("CONTENT_LENGTH") or 0)))
            environ["werkzeug.socket"].shutdown(2)
            return []
        if isinstance(how, int):
            code = {403: "AccessDenied", 503: "SlowDown"}.get(how, "InternalError")
            body = f"<Error><Code>{code}</Code><Message>{code} on the wire</Message></Error>".encode()
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(f"{how} Fault", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        answer = b"".join(self.app(environ, start))
        self.requests.append((what, len(answer)))
        return [answer[: len(answer) // 2]] if how == "stop" else [answer]  # "stop": an answer that breaks off


@contextmanager
def s3_server() -> Iterator[tuple[Wire, str]]:
    """moto's S3 behind a `Wire`, on a loopback port; with its address."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # slow to import
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    wire = Wire(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, wire, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield wire, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
