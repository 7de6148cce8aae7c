"""No key, member or file name that comes from elsewhere leads out of the folder it belongs in."""

from __future__ import annotations

import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.sources import SourceConfig, SourceError, open_source
from pipeline.sources.checked import key_fault
from storage import FeatureLayout, Spec, StoreError, StoreWriter, open_store
from storage.atomic import read_sealed, write_sealed
from storage.compact import compact
from storage.interop import FORMATS
from storage.interop.base import BadRow, ImportOptions
from storage.interop.folders import LARGEST, new_folder, read_npz, safe_name
from storage.places import inside
from storage.repair import repair_store
from storage.tar_shards import tar_key
from tests.unit.interop.samples_npz import region_record as wide_record
from tests.unit.storage.samples import REGIONS, contents, make_store, region_record

PARTS = ("..", ".", "", "a", "b.jpg", "C:", "\\", "..\\x", "\0", "~", "a\nb", "%2e%2e", "\u202e", "é", "x" * 300)
HOSTILE = ("../x", "/etc/x", "a/../../x", "..", "a/..", "C:\\x", "C:/x", "\\\\host\\x", "..\\x", "a\0b", "./../x")
names = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("/".join)
quick = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def lies_below(path: str | Path, folder: Path = Path("/root of all")) -> bool:
    return "\0" not in str(path) and (folder / path).is_relative_to(folder) and ".." not in (folder / path).parts


@pytest.mark.parametrize("key", HOSTILE[:-1])
def test_a_key_that_could_leave_a_folder_has_a_fault(key: str) -> None:
    assert key_fault(key)


@quick
@given(names)
def test_a_key_without_fault_stays_below_its_folder_on_every_system(key: str) -> None:
    if key_fault(key) is None:
        assert lies_below(key) and lies_below(key.replace("\\", "/")) and key.isprintable() | ("\u202e" in key)


@quick
@given(names)
def test_an_exported_file_stays_below_its_folder(key: str) -> None:
    try:
        name = safe_name(key, ".npz")
    except StoreError as error:
        assert "\n" not in str(error)
    else:
        assert lies_below(name)


@quick
@given(names)
def test_a_webdataset_member_stays_below_the_folder_it_is_unpacked_to(key: str) -> None:
    assert lies_below(tar_key(key)) and "\0" not in tar_key(key)


@quick
@given(names)
@example("shards/../../x")
def test_a_file_that_a_manifest_names_lies_in_the_store(file: str) -> None:
    try:
        assert lies_below(inside(file))
    except StoreError:
        assert "\0" in file or file.startswith("/") or ".." in file.split("/")


# Exporters, whole


@pytest.mark.parametrize("key", ["../x", "/x", "a/../../x", "a//b", "."])
@pytest.mark.parametrize("format", ["mcan-npz", "milvlg-npz", "openvqa-npz", "uniter-npz", "mmf-npy", "vlbert-zip"])
def test_no_exporter_writes_outside_its_folder(tmp_path: Path, format: str, key: str) -> None:
    layout = FeatureLayout(2048, "float32", class_probs=5, probs_dtype="float32")
    with StoreWriter(tmp_path / "store", Spec("regions", layout)).unit([key]) as unit:
        unit.append(replace(wide_record("a", 2, layout), key=key))
        unit.commit()
    before = contents(tmp_path)
    with pytest.raises(StoreError, match="cannot name a file below the folder"):
        FORMATS[format].write(open_store(tmp_path / "store"), tmp_path / "inner" / "out")
    assert contents(tmp_path) == before


def test_webdataset_shards_of_hostile_keys_unpack_below_their_folder(tmp_path: Path) -> None:
    keys = ["../x", "/x", "a/../../x", "C:\\x"]
    with StoreWriter(tmp_path / "store", REGIONS).unit(keys) as unit:
        for key in keys:
            unit.append(region_record(key))
        unit.commit()
    [shard] = open_store(tmp_path / "store").to_webdataset(tmp_path / "tars")
    with tarfile.open(shard) as tar:
        assert tar.getnames() and all(lies_below(name) and "\\" not in name for name in tar.getnames())


def test_a_folder_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="choose a new one"), new_folder(tmp_path / "out"):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


# Tars


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member_of(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_passed_over(tmp_path: Path, kind: bytes) -> None:
    hostile = member_of("b.jpg", kind, "/etc/passwd")
    listing = open_source(SourceConfig(str(tar_of(tmp_path / "x.tar", member_of("a.jpg", size=3), hostile)))).list()
    assert [ref.key for ref in listing.refs] == ["a"] and listing.passed_over == 1


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(HOSTILE) | names)
def test_no_tar_member_gets_a_key_that_leaves_the_tar(tmp_path: Path, name: str) -> None:
    source = open_source(SourceConfig(str(tar_of(tmp_path / "x.tar", member_of("a.jpg"), member_of(f"{name}.jpg")))))
    try:
        refs = source.list().refs
    except SourceError as error:
        assert "\n" not in str(error)
    else:
        assert all(key_fault(ref.key) is None and ref.uri.startswith(f"{tmp_path / 'x.tar'}#") for ref in refs)


@pytest.mark.parametrize("size", [1 << 20, 1 << 33, 1 << 62])
def test_a_member_that_says_it_is_larger_than_the_tar_is_refused_without_room_being_made(
    tmp_path: Path, size: int
) -> None:
    header = member_of("a.jpg", size=size).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "x.tar").write_bytes(header + bytes(2048))
    from extractors.images import ImageError
    from tests.fuzz.properties import limited_memory

    with limited_memory(256 << 20), pytest.raises((SourceError, ImageError)) as refused:
        source = open_source(SourceConfig(str(tmp_path / "x.tar")))
        [ref] = source.list().refs
        source.read(ref.uri)
    assert "\n" not in str(refused.value)


# Zips


def test_a_zip_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (LARGEST // 4,)})
        for _ in range(LARGEST >> 20):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(StoreError, match=f"unpacks to .* bytes, more than {LARGEST:,}"):
        read_npz(path, ("x",))


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "a/../../x.json"])
def test_a_member_of_a_zip_gets_no_key_that_leaves_a_folder(tmp_path: Path, name: str) -> None:
    layout = FeatureLayout(8, "float32")
    record = replace(region_record("1", 2, Spec("regions", layout)), image_size=(480, 640))
    with StoreWriter(tmp_path / "store", Spec("regions", layout)).unit(["1"]) as unit:
        unit.append(record)
        unit.commit()
    FORMATS["vlbert-zip"].write(open_store(tmp_path / "store"), tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as archive:
        archive.writestr(name, archive.read("x/1.json"))
    rows = list(FORMATS["vlbert-zip"].read(tmp_path / "x.zip", ImportOptions()).rows)
    assert [row.key for row in rows if not isinstance(row, BadRow)] in (["1"], ["x/1"])
    assert any(isinstance(row, BadRow) and "cannot name a file" in row.message for row in rows)


# Stores made to do harm


def hostile_store(tmp_path: Path, file: str) -> Path:
    """A store whose manifest, sealed anew, names a file elsewhere as its shard."""
    store = make_store(tmp_path / "store", [["a", "b"], ["c"]])
    entry = sorted((store / "manifest").iterdir())[0]
    content = read_sealed(entry)
    content["shard"]["file"] = file
    write_sealed(entry, content)
    return store


@pytest.mark.parametrize("file", ["../precious.txt", "shards/../../precious.txt", "{}/precious.txt"])
def test_a_manifest_cannot_have_a_file_outside_its_store_read_or_removed(tmp_path: Path, file: str) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    store = hostile_store(tmp_path, file.format(tmp_path))
    for job in (lambda: list(open_store(store).values()), lambda: compact(store), lambda: repair_store(store)):
        try:
            job()
        except StoreError as error:
            assert "\n" not in str(error)
        assert (tmp_path / "precious.txt").read_text() == "mine"
    with pytest.raises(StoreError, match="does not lie in it|cannot be read|damage"):
        list(open_store(hostile_store(tmp_path / "again", file.format(tmp_path))).values())
