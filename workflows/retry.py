"""`triptych retry`: failed images once more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from pipeline.config import EngineConfig
from pipeline.retry import ALL, retry
from workflows.progress import TerminalProgress, summary


@dataclass(frozen=True)
class Retry:
    """Try the failed images of a store again, with the settings they had; all others stay as they are.

    triptych retry features/regions --status timeout,decode_error
    """

    store: tyro.conf.Positional[str]
    """The store, a folder or an address."""
    status: str = ALL
    """Which: reasons or stages as `triptych errors` lists them, comma-separated; such as timeout,decode_error."""
    engine: Literal["local", "ray"] = "local"
    """As of extract."""
    workers: int | None = None
    """As of extract."""
    address: str | None = None
    """As of extract."""
    decode_workers: int | Literal["auto"] = "auto"
    """As of extract."""
    read_timeout: float = 60.0
    """As of extract."""

    def run(self) -> int:
        settings = {name: value for name, value in vars(self).items() if name not in ("store", "status")}
        statuses = [part.strip() for part in self.status.split(",") if part.strip()]
        result = retry(EngineConfig(self.store, **settings), statuses, TerminalProgress())
        print(summary(result))
        return result.status
