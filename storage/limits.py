"""How many files a process may have open: each mapped shard is one.

Shards are counted over all stores of the process and never taken off: a limit that is higher than needed harms nobody.
"""

from __future__ import annotations

import itertools
import resource

SPARE = 256
_opened = itertools.count(1)


def allow_open_files(needed: int) -> None:
    """Raise this process's own limit towards what the system allows it, before it is met. Call it for each shard.

    Args:
        needed: files that the caller has open, as far as it knows.
    """
    needed = max(needed, next(_opened))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and needed + SPARE > soft:
        wanted = max(2 * soft, needed + 2 * SPARE)
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
