"""A cluster that a job starts for itself listens on this machine only: whoever reaches Ray's ports can run code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

JOB = """
from pipeline import cluster
import ray
from tests.security.test_loopback import listeners
cluster.connect("local")
ray.get(ray.remote(lambda: 1).remote())
print("\\n".join(listeners()))
ray.shutdown()
"""
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
LISTENING = "0A"


def listeners() -> list[str]:
    """Addresses, in hex, on which this process and all that it started listen for TCP connections."""
    inodes = {inode for pid in _family() for inode in _sockets(pid)}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in inodes:
                found.append(fields[1].partition(":")[0])
    return found


def _family() -> set[str]:
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[entry.name] = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
    family = {str(Path("/proc/self").resolve().name)}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _sockets(pid: str) -> set[str]:
    found = set()
    for handle in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(handle.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's /proc")
def test_a_cluster_of_the_jobs_own_listens_on_loopback_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOB],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    addresses = done.stdout.split()
    assert len(addresses) > 3, "Ray listens somewhere, or this test looks in the wrong place"
    assert set(addresses) <= set(LOOPBACK), addresses
