"""A small S3: ListObjectsV2 in pages and GetObject with ranges; it fails when it is told to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ACCESS_KEY = "AKIDTEST"
PAGE = 2


@dataclass
class Bucket:
    """Objects of the bucket ``music``, and how the server shall behave."""

    objects: dict[str, bytes] = field(default_factory=dict)
    public: bool = False
    broken_answers: int = 0
    """How many answers with a body break off in their middle."""
    busy_answers: int = 0
    """How many requests are answered with 503."""
    ignores_ranges: bool = False
    requests: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def takes(self, what: str) -> bool:
        """Whether one more of these failures is due."""
        with self.lock:
            left = getattr(self, what)
            setattr(self, what, max(0, left - 1))
            return bool(left)


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_: object) -> None:
        """Nothing: the test asks ``Bucket.requests``."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        name, _, key = unquote(address.path).lstrip("/").partition("/")
        self.bucket.requests.append(f"{key} {self.headers.get('Range', '')}".strip())
        signature = self.headers.get("Authorization", "")
        if not self.bucket.public and f"Credential={ACCESS_KEY}/" not in signature:
            self._refuse(403, "AccessDenied")
        elif self.bucket.public and signature:
            self._refuse(400, "SignedAnyway")
        elif self.bucket.takes("busy_answers"):
            self._refuse(503, "SlowDown")
        elif name != "music":
            self._refuse(404, "NoSuchBucket")
        elif not key:
            self._list(query)
        elif key not in self.bucket.objects:
            self._refuse(404, "NoSuchKey")
        else:
            self._get(self.bucket.objects[key])

    def _list(self, query: dict[str, str]) -> None:
        keys = sorted(key for key in self.bucket.objects if key.startswith(query.get("prefix", "")))
        after = query.get("continuation-token", "")
        rest = [key for key in keys if key > after]
        page = rest[:PAGE]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.bucket.objects[key])}</Size>"
            f"<ETag>{escape(etag(self.bucket.objects[key]))}</ETag></Contents>"
            for key in page
        )
        more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if rest[PAGE:] else ""
        truncated = "true" if more else "false"
        self._send(
            200,
            f"<ListBucketResult><Name>music</Name><IsTruncated>{truncated}</IsTruncated>{more}{entries}"
            "</ListBucketResult>".encode(),
        )

    def _get(self, content: bytes) -> None:
        if self.headers.get("If-Match") not in (None, etag(content)):
            self._refuse(412, "PreconditionFailed")
            return
        asked = self.headers.get("Range")
        if asked is None or self.bucket.ignores_ranges:
            self._send(200, content)
            return
        first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self._send(206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode(), cut=False)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cut and status == 206 and len(body) > 1 and self.bucket.takes("broken_answers"):
            body = body[: len(body) // 2]
            self.close_connection = True
        self.bucket.sent_bytes += len(body)
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news."""


@contextmanager
def s3_server(bucket: Bucket) -> Iterator[str]:
    """Serves ``bucket`` at the address that is yielded."""
    handler = type("Handler", (_Handler,), {"bucket": bucket})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
