"""A mirror on this machine that can cut, lie, refuse and stall, and a small MTG-Jamendo for it to serve."""

from __future__ import annotations

import hashlib
import io
import random
import re
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAGE = b"<html><body>Sorry, this page has moved.</body></html>"


@dataclass
class Mirror:
    """What is served, by path without the first slash, and how.

    ``faults[path]`` are taken one a request, the last of them for ever if ``for_ever``:
    ``("cut", n)`` closes after n bytes of body; ``("status", code, headers)``; ``("page", status)`` answers
    with HTML; ``("longer", n)`` and ``("shorter", n)`` lie about the length; ``("no-ranges",)`` sends the
    whole whatever is asked; ``("packed",)`` claims gzip; ``("slow", seconds)`` waits before each 16 kB;
    ``("other", data)`` serves other bytes.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    for_ever: bool = False
    etags: bool = True
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, path: str) -> tuple[Any, ...]:
        with self._lock:
            waiting = self.faults.get(path) or self.faults.get("*") or []
            if not waiting:
                return ("none",)
            return waiting[0] if self.for_ever and len(waiting) == 1 else waiting.pop(0)

    def asked(self, path: str) -> list[str | None]:
        """The ranges asked of ``path``, in order."""
        return [ranges for _, name, ranges in self.requests if name == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mirror: Mirror

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.lstrip("/")
        self.mirror.requests.append((self.command, path, self.headers.get("Range")))
        fault = self.mirror.fault(path) if body else ("none",)
        data = fault[1] if fault[0] == "other" else self.mirror.files.get(path)
        if fault[0] == "status":
            self._send(fault[1], b"stumbled", {"Content-Type": "text/plain", **fault[2]}, body)
            return
        if fault[0] == "page" or data is None:
            self._send(fault[1] if fault[0] == "page" else 404, PAGE, {"Content-Type": "text/html"}, body)
            return
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {
            "Content-Type": "application/octet-stream",
            **({"ETag": etag} if self.mirror.etags else {}),
        }
        first, last = 0, len(data) - 1
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        current = self.headers.get("If-Range") in (None, etag)
        if ranged and current and fault[0] != "no-ranges":
            first = int(ranged[1])
            last = min(int(ranged[2]), last) if ranged[2] else last
            if first >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, body)
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        if fault[0] == "packed":
            headers["Content-Encoding"] = "gzip"
        status = 206 if "Content-Range" in headers else 200
        self._send(status, data[first : last + 1], headers, body, fault)

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str],
        body: bool,
        fault: tuple[Any, ...] = ("none",),
    ) -> None:
        lie = {"longer": 1, "shorter": -1}.get(fault[0], 0) * (fault[1] if len(fault) > 1 else 0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) + lie if lie else len(data)))
        self.end_headers()
        if not body:
            return
        if fault[0] == "cut":
            data = data[: fault[1]]
        try:
            for start in range(0, len(data), 1 << 14):
                if fault[0] == "slow":
                    time.sleep(fault[1])
                self.wfile.write(data[start : start + (1 << 14)])
            self.wfile.flush()
        except OSError:
            self.close_connection = True
            return
        if fault[0] == "cut" or lie:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *args: object) -> None:
        """A client that went away is what these tests are about."""


@contextmanager
def serve(mirror: Mirror) -> Iterator[Mirror]:
    """Serve ``mirror`` until the block ends; sets its ``url``."""
    handler = type("Handler", (_Handler,), {"mirror": mirror})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    mirror.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def noise(size: int, *key: object) -> bytes:
    """``size`` bytes that do not pack, the same for the same ``key``."""
    return random.Random(repr(key)).randbytes(size)


def tar_of(members: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> bytes:
    """A tar with a folder entry, as the published ones have, and ``members``; ``extra`` come first."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for info in extra or []:
            tar.addfile(info, io.BytesIO(b"\0" * info.size) if info.size else None)
        for folder in sorted({name.split("/")[0] for name in members if "/" in name}):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


_LICENSES = ("by", "by-nc-sa", "by-nc-nd", "by-sa")
_TAGS = ("genre---rock", "genre---jazz", "instrument---piano", "mood/theme---calm", "mood/theme---happy")


@dataclass
class SmallJamendo:
    """A catalogue of ``count`` tracks in 4 folders: its tables in ``tables``, its audio in ``audio``.

    Track 0 alone has ``genre---rare``. The tables are those of the repository, ``data/autotagging.tsv`` a
    link that comes as text.
    """

    count: int = 24
    size: int = 40_000
    tables: dict[str, bytes] = field(default_factory=dict)
    audio: dict[str, bytes] = field(default_factory=dict)
    tracks: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [1000 + 100 * (n // 4) + n % 4 for n in range(self.count)]
        rows = ["TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"]
        names = ["TRACK_ID\tARTIST_ID\tALBUM_ID\tTRACK_NAME\tARTIST_NAME\tALBUM_NAME\tRELEASEDATE\tURL"]
        licenses = []
        for n, number in enumerate(ids):
            path = f"{number % 100:02d}/{number}.mp3"
            keys = f"track_{number:07d}\tartist_{n // 3:06d}\talbum_{n // 2:06d}"
            tags = [_TAGS[n % 5], _TAGS[(n + 2) % 5], *(["genre---rare"] if n == 0 else [])]
            rows.append("\t".join([keys, path, f"{60 + n}.5", *tags]))
            page = f"http://www.jamendo.com/track/{number}"
            names.append(f'{keys}\tSong "{n}\tArtist {n // 3}\tAlbum {n // 2}\t2010-01-01\t{page}')
            code = _LICENSES[n % 4]
            licenses += [
                path,
                f"Song {n} by Artist {n // 3} from Jamendo: {page}",
                f"Available under a Creative Commons license: http://creativecommons.org/licenses/{code}/3.0/",
                "",
            ]
            self.tracks[path] = noise(self.size + 37 * n, "track", number)
        table = "\n".join(rows) + "\n"
        half = "\n".join([rows[0], *rows[1::2]]) + "\n"
        self.tables = {
            "data/raw_30s.tsv": table.encode(),
            "data/raw_30s_cleantags_50artists.tsv": table.encode(),
            "data/autotagging.tsv": b"raw_30s_cleantags_50artists.tsv",
            "data/splits/split-0/autotagging-train.tsv": half.encode(),
            "data/raw.meta.tsv": ("\n".join(names) + "\n").encode(),
            "audio_licenses.txt": ("\n".join(licenses) + "\n").encode(),
        }
        self.seal()

    def seal(self, tars: dict[str, bytes] | None = None) -> None:
        """Make the tars (or take ``tars`` by folder) and the manifests that list what is there."""
        low = {path.replace(".mp3", ".low.mp3"): data[: len(data) // 3] for path, data in self.tracks.items()}
        for quality, tracks in (("audio", self.tracks), ("audio-low", low)):
            folders: dict[str, dict[str, bytes]] = {}
            for path, data in tracks.items():
                folders.setdefault(path[:2], {})[path] = data
                self.audio[f"raw_30s/{quality}/{path}"] = data
            packed = {
                folder: (tars or {}).get(folder, tar_of(members)) for folder, members in folders.items()
            }
            for folder, data in packed.items():
                self.audio[f"raw_30s/{quality}/raw_30s_{quality}-{folder}.tar"] = data
            lines = {f"raw_30s_{quality}-{folder}.tar": data for folder, data in packed.items()}
            for kind, listed in (("tracks", tracks), ("tars", lines)):
                text = "".join(
                    f"{hashlib.sha256(data).hexdigest()} {name}\n" for name, data in listed.items()
                )
                self.tables[f"data/download/raw_30s_{quality}_sha256_{kind}.txt"] = text.encode()
