"""The server of the explorer's page: this machine alone reaches it."""

import errno
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from photonic_essl.explorer.session import Session
from photonic_essl.explorer.solver_process import SupersededError

ADDRESS = "127.0.0.1"
LARGEST_REQUEST = 2**20  # bytes
PAGES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript")}


class PageServer(ThreadingHTTPServer):
    """The page's server, on this machine's own address alone.

    Args:
        port: 0 for any that is free.

    Raises:
        ValueError: if the port is in use, or is none.
    """

    daemon_threads = True
    allow_reuse_port = False  # or a second explorer would take every other request
    session: Session

    def __init__(self, port: int):
        if not 0 <= port < 2**16:
            raise ValueError(f"`port` must be from 0 to {2**16 - 1}, got {port}.")
        try:
            super().__init__((ADDRESS, port), PageHandler)
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
            raise ValueError(f"`port` {port} {reason}; choose another.") from None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors, but not that a browser went away before it got its answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class PageHandler(BaseHTTPRequestHandler):
    """Serves the page, and answers its requests with JSON: null where a newer one came, one line on an error."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the second packet of an answer waits 40 ms for the first one's receipt
    server: PageServer

    def do_GET(self) -> None:
        """Serve a file of the page, or what there is to choose from."""
        if not self._is_ours():
            self._answer(403, {"error": "this page is for this machine alone"})
        elif self.path == "/catalogue":
            self._answer(200, self.server.session.choices)
        elif self.path in PAGES:
            name, kind = PAGES[self.path]
            self._send(200, files("photonic_essl.explorer").joinpath(name).read_bytes(), kind)
        else:
            self._answer(404, {"error": "there is nothing here"})

    def do_POST(self) -> None:
        """Do what the page asks for."""
        length = self.headers.get("Content-Length", "0")
        task = self.server.session.tasks.get(self.path)
        ours = self._is_ours() and self.headers.get("Content-Type") == "application/json"
        if not ours or not length.isdecimal() or int(length) > LARGEST_REQUEST:
            self.close_connection = True
            return self._answer(403, {"error": "this page is for this machine alone"})
        cell = self.rfile.read(int(length))
        if task is None:
            return self._answer(404, {"error": "there is nothing here"})
        try:
            answer = task(cell.decode())
        except SupersededError:
            return self._answer(200, None)
        except (ValueError, RuntimeError, OSError) as error:
            return self._answer(422, {"error": " ".join(str(error).split())})
        return self._answer(200, answer)

    def log_message(self, *_: Any) -> None:
        """Say nothing of requests."""

    def _is_ours(self) -> bool:
        """Return whether the page was asked for by its own address: other sites can give that a name of theirs."""
        try:
            return urlsplit(f"//{self.headers.get('Host')}").hostname in (ADDRESS, "localhost")
        except ValueError:
            return False

    def _answer(self, status: int, content: dict[str, Any] | None) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "default-src 'self'; style-src 'unsafe-inline'; img-src data:")
        self.end_headers()
        self.wfile.write(body)
