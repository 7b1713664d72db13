"""A file from a mirror that misbehaves: whole and verified, or not there and named."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from download_server import Mirror, noise, serve

from stable_audio_tools.data.download import transfer
from stable_audio_tools.data.download.http import Client, MirrorRefusalError, check_base_urls
from stable_audio_tools.data.download.meter import Meter, size_text
from stable_audio_tools.data.download.mirrors import Mirrors, StoppedError
from stable_audio_tools.data.download.placing import ChecksumError, Digest, DiskFullError
from stable_audio_tools.data.download.transfer import Fetcher, UnreachableError, Wanted
from stable_audio_tools.errors import UsageError

DATA = noise(300_000, "the file")
SHA256 = Digest("sha256", hashlib.sha256(DATA).hexdigest())


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve(Mirror({"a/x.mp3": DATA})) as running:
        yield running


def fetcher_of(*mirrors: Mirror, retries: int = 3) -> Fetcher:
    return Fetcher(Client(4, 5.0), Mirrors([one.url for one in mirrors], 0.01), retries=retries)


def wanted_in(folder: Path, digest: Digest | None = SHA256, **more: Any) -> Wanted:
    return Wanted("a/x.mp3", folder / "x.mp3", digest, **more)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_and_leaves_nothing_beside_it(mirror: Mirror, tmp_path: Path) -> None:
    fetcher_of(mirror).fetch(wanted_in(tmp_path))
    assert (tmp_path / "x.mp3").read_bytes() == DATA
    assert left_in(tmp_path) == ["x.mp3"]


@pytest.mark.parametrize("size", [0, 1])
def test_files_of_hardly_any_bytes(size: int, tmp_path: Path) -> None:
    data = DATA[:size]
    with serve(Mirror({"a/x.mp3": data})) as mirror:
        fetcher_of(mirror).fetch(wanted_in(tmp_path, Digest("sha256", hashlib.sha256(data).hexdigest())))
    assert (tmp_path / "x.mp3").read_bytes() == data


def test_a_cut_connection_is_taken_up_where_it_broke(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults["a/x.mp3"] = [("cut", 100_000), ("cut", 50_000)]
    fetcher_of(mirror, retries=0).fetch(wanted_in(tmp_path))
    assert (tmp_path / "x.mp3").read_bytes() == DATA
    assert mirror.asked("a/x.mp3") == [None, "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize("have", [1, 1000, len(DATA) - 1, len(DATA)])
def test_a_part_of_an_earlier_run_is_gone_on_with(have: int, mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / ".x.mp3.part").write_bytes(DATA[:have])
    (tmp_path / ".x.mp3.part.json").write_text(json.dumps({"digest": SHA256.value}))
    fetcher_of(mirror).fetch(wanted_in(tmp_path))
    assert (tmp_path / "x.mp3").read_bytes() == DATA
    assert mirror.asked("a/x.mp3") == ([] if have == len(DATA) else [f"bytes={have}-"])


@pytest.mark.parametrize("part", [b"\0" * 5000, DATA + b"more", DATA[:1000] + b"\0" + DATA[1001:]])
def test_a_part_that_went_bad_is_seen_and_fetched_anew(part: bytes, mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / ".x.mp3.part").write_bytes(part)
    (tmp_path / ".x.mp3.part.json").write_text(json.dumps({"digest": SHA256.value}))
    fetcher_of(mirror).fetch(wanted_in(tmp_path))
    assert (tmp_path / "x.mp3").read_bytes() == DATA


def test_a_part_of_another_file_is_not_gone_on_with(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / ".x.mp3.part").write_bytes(DATA[:1000])
    for note in ('{"digest": "another"}', "no JSON", "[]"):
        (tmp_path / ".x.mp3.part.json").write_text(note)
        mirror.requests.clear()
        fetcher_of(mirror).fetch(wanted_in(tmp_path))
        assert mirror.asked("a/x.mp3") == [None]
        (tmp_path / ".x.mp3.part").write_bytes(DATA[:1000])


def test_a_server_without_ranges_sends_it_all_again(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults["a/x.mp3"] = [("cut", 1000), ("no-ranges",)]
    fetcher_of(mirror).fetch(wanted_in(tmp_path))
    assert (tmp_path / "x.mp3").read_bytes() == DATA


def test_a_table_that_changed_in_between_is_not_glued_together(mirror: Mirror, tmp_path: Path) -> None:
    older = noise(200_000, "as it was")
    (tmp_path / ".x.mp3.part").write_bytes(older[:1000])
    note = {"url": f"{mirror.url}/a/x.mp3", "validator": '"as it was"', "total": 200_000, "digest": None}
    (tmp_path / ".x.mp3.part.json").write_text(json.dumps(note))
    fetcher_of(mirror).fetch(wanted_in(tmp_path, None))
    assert mirror.asked("a/x.mp3") == ["bytes=1000-"]
    assert (tmp_path / "x.mp3").read_bytes() == DATA


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (("page", 404), MirrorRefusalError, "answers 404"),
        (("page", 200), MirrorRefusalError, "a web page"),
        (("packed",), MirrorRefusalError, "packed with gzip"),
        (("shorter", 1000), ChecksumError, "gave 299000 bytes whose sha256"),
        (("other", b"\0" * 300_000), ChecksumError, "gave 300000 bytes whose sha256"),
        (("status", 500, {}), UnreachableError, "answers 500"),
        (("status", 403, {}), MirrorRefusalError, "answers 403"),
    ],
)
def test_what_is_not_the_file_is_refused_by_name(
    fault: tuple[Any, ...], kind: type[Exception], said: str, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.faults["a/x.mp3"], mirror.for_ever = [fault], True
    with pytest.raises(kind, match=said) as caught:
        fetcher_of(mirror).fetch(wanted_in(tmp_path))
    assert "a/x.mp3" in str(caught.value)
    assert mirror.url in str(caught.value)
    assert left_in(tmp_path) == []


def test_a_length_that_is_too_long_does_no_harm(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults["a/x.mp3"], mirror.for_ever = [("longer", 1000)], True
    fetcher_of(mirror).fetch(wanted_in(tmp_path))
    assert (tmp_path / "x.mp3").read_bytes() == DATA


@pytest.mark.parametrize(
    "fault", [("page", 404), ("status", 503, {}), ("other", b"wrong"), ("cut", 0), ("shorter", 7)]
)
def test_the_next_mirror_is_asked(fault: tuple[Any, ...], mirror: Mirror, tmp_path: Path) -> None:
    with serve(Mirror({"a/x.mp3": DATA}, {"*": [fault]}, for_ever=True)) as bad:
        fetcher_of(bad, mirror).fetch(wanted_in(tmp_path))
    assert (tmp_path / "x.mp3").read_bytes() == DATA
    assert bad.requests


def test_a_part_of_one_mirror_is_gone_on_with_at_another(mirror: Mirror, tmp_path: Path) -> None:
    mirror.etags = False
    faults = {"*": [("cut", 120_000), ("status", 404, {})]}
    with serve(Mirror({"a/x.mp3": DATA}, faults, for_ever=True)) as bad:
        fetcher_of(bad, mirror).fetch(wanted_in(tmp_path))
    assert mirror.asked("a/x.mp3") == ["bytes=120000-"]
    assert (tmp_path / "x.mp3").read_bytes() == DATA


def test_the_wrong_start_of_one_mirror_does_not_spoil_another(mirror: Mirror, tmp_path: Path) -> None:
    with serve(Mirror({"a/x.mp3": noise(300_000, "wrong")}, {"*": [("cut", 120_000), ("page", 404)]})) as bad:
        bad.for_ever = True
        fetcher_of(bad, mirror).fetch(wanted_in(tmp_path))
    assert (tmp_path / "x.mp3").read_bytes() == DATA


def test_nobody_there_is_said(tmp_path: Path) -> None:
    fetcher = Fetcher(Client(1, 1.0), Mirrors(["http://127.0.0.1:9"], 0.01), retries=1)
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9 no answer"):
        fetcher.fetch(wanted_in(tmp_path))


def test_a_member_of_a_far_archive_is_had_by_its_range(mirror: Mirror, tmp_path: Path) -> None:
    part = DATA[70_000:90_000]
    digest = Digest("sha256", hashlib.sha256(part).hexdigest())
    mirror.faults["a/x.mp3"] = [("cut", 500)]
    fetcher_of(mirror).fetch(wanted_in(tmp_path, digest, offset=70_000, size=20_000))
    assert (tmp_path / "x.mp3").read_bytes() == part
    assert mirror.asked("a/x.mp3") == ["bytes=70000-89999", "bytes=70500-89999"]


def test_a_member_is_not_looked_for_where_there_are_no_ranges(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults["a/x.mp3"], mirror.for_ever = [("no-ranges",)], True
    with pytest.raises(MirrorRefusalError, match="with the whole file"):
        fetcher_of(mirror).fetch(wanted_in(tmp_path, offset=7, size=10))
    with pytest.raises(MirrorRefusalError, match="with the whole file"):
        fetcher_of(mirror).read("a/x.mp3", 7, 10)


def test_a_full_disk_is_said_and_the_part_is_kept(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = transfer.open_part

    class Small:
        """A file on a disk with room for 10,000 bytes."""

        def __init__(self, file: Any) -> None:
            self._file, self._room = file, 10_000

        def __enter__(self) -> Small:
            return self

        def __exit__(self, *args: object) -> None:
            self._file.close()

        def write(self, block: memoryview) -> int:
            if self._room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            count = int(self._file.write(block[: self._room]))
            self._room -= count
            return count

    monkeypatch.setattr(transfer, "open_part", lambda path, have: Small(opened(path, have)))
    with pytest.raises(DiskFullError, match=r"the disk is full \(.* free\)"):
        fetcher_of(mirror).fetch(wanted_in(tmp_path))
    monkeypatch.undo()
    assert (tmp_path / ".x.mp3.part").read_bytes() == DATA[:10_000]
    fetcher_of(mirror).fetch(wanted_in(tmp_path))
    assert mirror.asked("a/x.mp3")[-1] == "bytes=10000-"
    assert (tmp_path / "x.mp3").read_bytes() == DATA


def test_a_stop_is_heard_while_waiting_and_while_reading(mirror: Mirror, tmp_path: Path) -> None:
    fetcher = fetcher_of(mirror)
    fetcher.mirrors.stop.set()
    with pytest.raises(StoppedError):
        fetcher.fetch(wanted_in(tmp_path))
    fetcher = fetcher_of(mirror)
    mirror.faults["a/x.mp3"] = [("slow", 0.05)]
    threading.Timer(0.2, fetcher.mirrors.stop.set).start()
    with pytest.raises(StoppedError):
        fetcher.fetch(wanted_in(tmp_path))
    assert not (tmp_path / "x.mp3").exists()


def test_a_mirror_is_left_alone_for_as_long_as_it_asks() -> None:
    mirrors = Mirrors(["one", "two"], 0.01)
    mirrors.stumbled("one", 30.0)
    assert {mirrors.choose(["one", "two"]) for _ in range(3)} == {"two"}
    mirrors.answered("one")
    assert mirrors.choose(["one", "two"]) == "one"


def test_rests_grow_with_stumbles_and_end_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("stable_audio_tools.data.download.mirrors.time.monotonic", lambda: now)
    mirrors = Mirrors(["one"], 1.0)
    rests = []

    def rest(pause: float) -> None:
        nonlocal now
        now += pause
        rests.append(pause)

    monkeypatch.setattr(mirrors.stop, "wait", rest)
    for _ in range(8):
        mirrors.stumbled("one")
        mirrors.choose(["one"])
    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    mirrors.answered("one")
    mirrors.stumbled("one")
    mirrors.choose(["one"])
    assert rests[-1] == 1.0


def test_the_meter_counts_bytes_once_whatever_happens(mirror: Mirror, tmp_path: Path) -> None:
    mirror.faults["a/x.mp3"] = [("cut", 100_000), ("status", 500, {}), ("no-ranges",)]
    meter = Meter("files", 1, 5.0)
    fetcher_of(mirror).fetch(wanted_in(tmp_path, guess=5.0), meter)
    assert meter.bytes_done == meter.bytes_total == len(DATA)


def test_sizes_are_said_as_people_say_them() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 3_318_019_617, 5.08e11)] == [
        "0 B", "999 B", "1.0 kB", "3.3 GB", "508.0 GB",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", " , ", "ftp://x/y", "example.org/x", "http://", "http://a,zenodo.org"])
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--base-url"):
        check_base_urls(text, "--base-url")


def test_addresses_lose_their_last_slash() -> None:
    assert check_base_urls("http://a/b/, https://c", "--base-url") == ("http://a/b", "https://c")
