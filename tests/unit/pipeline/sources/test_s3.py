"""Sources on S3, against moto's server on a loopback port."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractors.images import ImageError
from pipeline.sources import SourceError, addresses
from tests.unit.pipeline.sources.helpers import bytes_by_key, keys_of, source_of, tar_of

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
server = pytest.importorskip("moto.server", reason="moto is not installed")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket with two images, a tar and a Parquet file; an empty cache."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*running.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("TRIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        s3fs.S3FileSystem.clear_instance_cache()
        addresses._file_system.cache_clear()
        fs = s3fs.S3FileSystem()
        fs.mkdir("sources")
        fs.pipe_file("sources/in/a/1.jpg", b"a/1.jpg")
        fs.pipe_file("sources/in/b#?.jpg", b"b#?.jpg")
        fs.pipe_file("sources/shards/0.tar", tar_of("1.jpg", "2.jpg"))
        out = pa.BufferOutputStream()
        pq.write_table(pa.table({"image": [b"x", b"y"], "id": [7, 8]}), out, row_group_size=1)
        fs.pipe_file("sources/tables/0.parquet", out.getvalue().to_pybytes())
        yield "s3://sources"
    addresses._file_system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def test_folders_tars_and_tables(bucket: str) -> None:
    assert bytes_by_key(source_of(f"{bucket}/in")) == {"a/1": b"a/1.jpg", "b#?": b"b#?.jpg"}
    assert bytes_by_key(source_of(f"{bucket}/shards/*.tar")) == {"1": b"1.jpg", "2": b"2.jpg"}
    assert bytes_by_key(source_of(f"{bucket}/tables/*.parquet")) == {"7": b"x", "8": b"y"}
    assert keys_of(f"{bucket}/tables/0.parquet") == ["7", "8"]


def test_what_is_missing_has_reasons(bucket: str) -> None:
    with pytest.raises(ImageError) as caught:
        source_of(f"{bucket}/in").read(f"{bucket}/in/gone.jpg")
    assert caught.value.reason == "missing"
    for images in (f"{bucket}/absent", "s3://no-such-bucket/x", f"{bucket}/absent.txt"):
        with pytest.raises(SourceError, match="cannot be read") as wrong:
            source_of(images).list()
        assert "\n" not in str(wrong.value)
