"""Members of archives: verified, inside the folder, and nothing but plain files."""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from download_server import noise, tar_of

from stable_audio_tools.data.download.archives import (
    Span,
    Unpacked,
    index_tar,
    unpack_tar,
    unpack_zip,
    why_unsafe,
)
from stable_audio_tools.data.download.placing import Digest
from stable_audio_tools.errors import DataError

MEMBERS = {f"07/{number}07.mp3": noise(3000 + number, "member", number) for number in range(5)}
DIGESTS = {name: Digest("sha256", hashlib.sha256(data).hexdigest()) for name, data in MEMBERS.items()}


def unpack(data: bytes, tmp_path: Path) -> Unpacked:
    archive = tmp_path / "a.tar"
    archive.write_bytes(data)
    return unpack_tar(archive, DIGESTS, (tmp_path / "audio").joinpath)


def everything_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def hostile(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def test_the_members_asked_for_come_out_whole(tmp_path: Path) -> None:
    result = unpack(tar_of({**MEMBERS, "07/unasked.mp3": b"x"}), tmp_path)
    assert result.refused == result.problems == []
    assert {name: (tmp_path / "audio" / name).read_bytes() for name in MEMBERS} == MEMBERS
    assert everything_under(tmp_path) == {"a.tar", *(f"audio/{name}" for name in MEMBERS)}
    assert result.sha256 == {name: digest.value for name, digest in DIGESTS.items()}


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (hostile("../evil.mp3", size=10), "leaves the folder"),
        (hostile("07/../../evil.mp3", size=10), "leaves the folder"),
        (hostile("/tmp/evil.mp3", size=10), "is an absolute path"),
        (hostile("C:\\evil.mp3", size=10), "is an absolute path"),
        (hostile("..\\evil.mp3", size=10), "has a backslash"),
        (hostile("07/107.mp3", tarfile.SYMTYPE, "/etc/passwd"), "is a link to '/etc/passwd'"),
        (hostile("07/107.mp3", tarfile.LNKTYPE, "../../secret"), "is a link to '../../secret'"),
        (hostile("07", tarfile.SYMTYPE, "/tmp"), "is a link to '/tmp'"),
        (hostile("07/device", tarfile.CHRTYPE), "is not a regular file"),
        (hostile("07/pipe", tarfile.FIFOTYPE), "is not a regular file"),
    ],
)
def test_a_hostile_member_is_refused_by_name_and_the_others_come(
    member: tarfile.TarInfo, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    result = unpack(tar_of(MEMBERS, [member]), folder)
    assert len(result.refused) == 1
    assert repr(member.name) in result.refused[0]
    assert said in result.refused[0]
    assert set(result.sha256) == set(MEMBERS)
    assert everything_under(tmp_path) == {"inner/a.tar", *(f"inner/audio/{name}" for name in MEMBERS)}


def test_a_member_that_is_not_what_is_listed_is_left_out(tmp_path: Path) -> None:
    result = unpack(tar_of({**MEMBERS, "07/207.mp3": b"another song"}), tmp_path)
    assert "07/207.mp3: its sha256 is not the one" in result.problems[0]
    assert everything_under(tmp_path / "audio") == set(MEMBERS) - {"07/207.mp3"}


@pytest.mark.parametrize("size", [0, 100, 600, 2000, 8000, 12_000])
def test_a_tar_that_breaks_off_gives_what_it_has(size: int, tmp_path: Path) -> None:
    result = unpack(tar_of(MEMBERS)[:size], tmp_path)
    assert set(result.sha256) < set(MEMBERS)
    assert everything_under(tmp_path / "audio") == set(result.sha256)
    for name in result.sha256:
        assert (tmp_path / "audio" / name).read_bytes() == MEMBERS[name]


def test_what_is_no_tar_is_said(tmp_path: Path) -> None:
    result = unpack(noise(5000, "no tar"), tmp_path)
    assert result.sha256 == {}
    assert "a.tar: breaks off" in result.problems[0]


@pytest.mark.parametrize("name", ["a", "07/1.mp3", "a..b/c", "x/.hidden", "emoji 🎵.mp3"])
def test_names_that_may_become_paths(name: str) -> None:
    assert why_unsafe(name) is None


def reader(data: bytes, asked: list[int]) -> object:
    def read(first: int, count: int) -> tuple[bytes, int | None]:
        asked.append(count)
        return data[first : first + count], len(data)

    return read


def test_a_far_tar_is_indexed_by_its_headers_alone() -> None:
    members = {
        **MEMBERS,
        "07/large.mp3": noise(200_000, "large"),
        "07/last.mp3": b"end",
        "07/" + "n" * 150: b"long",
    }
    data, asked = tar_of(members), []
    spans = index_tar("a.tar", reader(data, asked))  # type: ignore[arg-type]
    assert {name: data[span.offset : span.offset + span.size] for name, span in spans.items()} == members
    assert sum(asked) < 40_000 < len(data)


def test_hostile_members_of_a_far_tar_have_no_place_in_the_index() -> None:
    data = tar_of(MEMBERS, [hostile("../evil", size=5), hostile("07/link", tarfile.SYMTYPE, "/etc/passwd")])
    assert set(index_tar("a.tar", reader(data, []))) == set(MEMBERS)  # type: ignore[arg-type]


def test_a_far_file_that_is_no_tar_is_said() -> None:
    with pytest.raises(DataError, match="cannot be indexed"):
        index_tar("a.tar", reader(noise(5000, "no tar"), []))  # type: ignore[arg-type]
    assert index_tar("a.tar", reader(tar_of({"x": b"1"}), [])) == {"x": Span(512, 1)}  # type: ignore[arg-type]


def zip_of(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            packed.writestr(info, target)
    return stream.getvalue()


def unpack_all(data: bytes, tmp_path: Path) -> Unpacked:
    archive = tmp_path / "a.zip"
    archive.write_bytes(data)
    return unpack_zip(archive, lambda name: tmp_path / "audio" / name if name.endswith(".mp3") else None)


def test_a_zip_gives_its_members_once(tmp_path: Path) -> None:
    data = zip_of({**MEMBERS, "07/": b"", "notes.txt": b"no"})
    assert unpack_all(data, tmp_path).sha256 == {name: digest.value for name, digest in DIGESTS.items()}
    stamp = (tmp_path / "audio/07/107.mp3").stat().st_mtime_ns
    (tmp_path / "audio/07/207.mp3").write_bytes(b"mine")
    again = unpack_all(data, tmp_path)
    assert set(again.sha256) == set(MEMBERS)
    assert (tmp_path / "audio/07/107.mp3").stat().st_mtime_ns == stamp
    assert (tmp_path / "audio/07/.unverified-1-207.mp3").read_bytes() == b"mine"
    assert (tmp_path / "audio/07/207.mp3").read_bytes() == MEMBERS["07/207.mp3"]


def test_hostile_members_of_a_zip_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    data = zip_of({**MEMBERS, "../evil.mp3": b"x", "/abs.mp3": b"x"}, {"link.mp3": "/etc/passwd"})
    result = unpack_all(data, folder)
    assert [line.split("'")[1] for line in result.refused] == ["../evil.mp3", "/abs.mp3", "link.mp3"]
    assert everything_under(tmp_path) == {"inner/a.zip", *(f"inner/audio/{name}" for name in MEMBERS)}


def test_a_zip_with_a_bad_member_gives_the_others(tmp_path: Path) -> None:
    data = bytearray(zip_of(MEMBERS))
    at = data.index(MEMBERS["07/207.mp3"])
    data[at] ^= 255
    result = unpack_all(bytes(data), tmp_path)
    assert len(result.problems) == 1
    assert "07/207.mp3: Bad CRC-32" in result.problems[0]
    assert everything_under(tmp_path / "audio") == set(MEMBERS) - {"07/207.mp3"}
    assert "is no whole zip" in unpack_all(bytes(data[:9000]), tmp_path).problems[0]
