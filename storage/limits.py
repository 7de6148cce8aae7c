"""How many files a process may have open: each mapped shard is one."""

from __future__ import annotations

import resource

SPARE = 256


def allow_open_files(needed: int) -> None:
    """Raise this process's own limit towards what the system allows it, before it is met."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and needed + SPARE > soft:
        wanted = max(2 * soft, needed + 2 * SPARE)
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
