"""One HTTP request for a file or a part of it; an answer that is not that becomes one of two errors.

A mirror that has not got the file is left for the next (:class:`MirrorRefusalError`); one that stumbled is
asked again (:class:`MirrorFaultError`). Nothing is believed here about lengths: the caller checks what came.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from stable_audio_tools.errors import DataError, UsageError

_STUMBLES = frozenset({408, 425, 429}) | frozenset(range(500, 600))
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)\Z")
_REDIRECTS = 5


class MirrorRefusalError(DataError):
    """This mirror will not give this file, now or later. ``status`` is that of the answer, where it tells."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class MirrorFaultError(DataError):
    """This mirror stumbled; asked again, it may give the file. ``wait_seconds`` is what it asked for."""

    def __init__(self, message: str, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


@dataclass
class Reply:
    """The start of an answer: ``start`` is the first byte that comes, ``total`` the length of the file."""

    start: int
    total: int | None
    validator: str | None
    """A strong ETag, or else the date of the last change: what If-Range takes."""
    _response: Any

    def blocks(self, size: int = 1 << 18) -> Iterator[bytes]:
        """The bytes as they come, at most ``size`` at a time: a kill loses nothing that has arrived.

        Raises:
            MirrorFaultError: the connection ended before all that was promised.
        """
        import urllib3

        try:
            while block := self._response.read1(size, decode_content=False):
                yield block
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise MirrorFaultError(f"the connection was cut ({_reason(error)})") from error


class Client:
    """Requests with pooled connections, time limits, and the proxies of the environment.

    Args:
        connections: how many are kept open to one host.
        timeout_seconds: how long to wait for a connection, and for each block of an answer.
    """

    def __init__(self, connections: int, timeout_seconds: float) -> None:
        self._settings: dict[str, Any] = {
            "maxsize": connections,
            "timeout": timeout_seconds,
            "headers": {
                "User-Agent": f"stable-audio-tools/{metadata.version('stable-audio-tools')}",
                "Accept-Encoding": "identity",  # checksums and ranges are of the file, not of a packed form
            },
        }
        self._managers: dict[str | None, Any] = {}

    @contextmanager
    def get(
        self, url: str, first: int = 0, last: int | None = None, validator: str | None = None
    ) -> Iterator[Reply]:
        """Ask for the bytes ``first`` to ``last`` (inclusive) of ``url``, or to its end.

        With ``validator`` a file that has changed since comes whole, from byte 0; so it does from a server
        that knows no ranges. Look at ``Reply.start``.

        Raises:
            MirrorRefusalError, MirrorFaultError: there is nothing to read.
        """
        headers = dict(self._settings["headers"])
        ranged = first > 0 or last is not None
        if ranged:
            headers["Range"] = f"bytes={first}-{'' if last is None else last}"
            if validator is not None:
                headers["If-Range"] = validator
        response = self._request("GET", url, headers)
        try:
            yield _reply(response, first, last, ranged)
        finally:
            response.close()  # a body that was not read to its end would be taken for the next answer
            response.release_conn()

    def length(self, url: str) -> int | None:
        """How many bytes ``url`` says it has, or None.

        Raises:
            MirrorRefusalError, MirrorFaultError: it is not there, or no answer came.
        """
        response = self._request("HEAD", url, dict(self._settings["headers"]))
        response.release_conn()
        return _reply(response, 0, None, False).total

    def _request(self, method: str, url: str, headers: dict[str, str]) -> Any:
        import urllib3

        try:
            return self._manager(url).request(
                method,
                url,
                headers=headers,
                preload_content=False,
                decode_content=False,
                retries=urllib3.Retry(
                    total=None, connect=0, read=0, status=0, other=0, redirect=_REDIRECTS, backoff_factor=0
                ),
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise MirrorFaultError(f"no answer ({_reason(error)})") from error

    def _manager(self, url: str) -> Any:
        import urllib3

        parts = urlsplit(url)
        proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
        if proxy not in self._managers:
            self._managers[proxy] = (
                urllib3.PoolManager(**self._settings)
                if proxy is None
                else urllib3.ProxyManager(proxy if "://" in proxy else f"http://{proxy}", **self._settings)
            )
        return self._managers[proxy]


def check_base_urls(text: str, flag: str) -> tuple[str, ...]:
    """The addresses in a comma-separated list, without their last slash.

    Raises:
        UsageError: there is none, or one is not of HTTP; names ``flag``.
    """
    urls = tuple(url.strip().rstrip("/") for url in text.split(",") if url.strip())
    wrong = [url for url in urls if not re.match(r"https?://[^/\s]", url)]
    if wrong or not urls:
        found = repr(wrong[0]) if wrong else "nothing"
        raise UsageError(f"{flag}: {found} is no address, expected http:// or https:// and a host")
    return urls


def _reply(response: Any, first: int, last: int | None, ranged: bool) -> Reply:
    status, headers = response.status, response.headers
    if status in _STUMBLES:
        raise MirrorFaultError(f"answers {status} {response.reason}", _wait(headers.get("Retry-After")))
    if status not in (200, 206):
        raise MirrorRefusalError(f"answers {status} {response.reason}", status)
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
        raise MirrorRefusalError("answers with a web page, not with the file")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise MirrorRefusalError(f"sends the file packed with {headers['Content-Encoding']}, unasked")
    if status == 200:
        length = headers.get("Content-Length", "")
        return Reply(0, int(length) if length.isdigit() else None, _validator(headers), response)
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    if not ranged or match is None or match[1] is None or int(match[1]) != first:
        raise MirrorRefusalError(
            f"was asked from byte {first} on and answers with {headers.get('Content-Range')!r}"
        )
    if last is not None and int(match[2]) != last:
        raise MirrorRefusalError(f"was asked for the bytes {first} to {last} and gives them up to {match[2]}")
    return Reply(first, None if match[3] == "*" else int(match[3]), _validator(headers), response)


def _validator(headers: Any) -> str | None:
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return str(etag)
    changed = headers.get("Last-Modified")
    return str(changed) if changed else None


def _wait(retry_after: str | None) -> float:
    """Seconds that ``Retry-After`` asks for; the form with a date is rare and left to the usual back-off."""
    return float(retry_after) if retry_after and retry_after.isdigit() else 0.0


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words, without object addresses."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException) and inner is not error:
        return _reason(inner)
    text = re.sub(r"^<?\S*\(host=.*?\)>?: |<.*?object at 0x\w+>:? ?", "", str(error)).strip()
    return text or type(error).__name__
