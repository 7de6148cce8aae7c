"""`triptych retry`: failed images once more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from pipeline.config import EngineConfig
from workflows.output import Command
from workflows.progress import told


@dataclass(frozen=True)
class Retry(Command):
    """Try the failed images of a store again, with the settings they had; all others stay as they are.

    triptych retry features/regions --status timeout,decode_error
    """

    store: tyro.conf.Positional[str]
    """The store, a folder or an address."""
    status: str = "all"
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
        from pipeline.retry import retry

        mine = ("store", "status", "json", "quiet")
        settings = {name: value for name, value in vars(self).items() if name not in mine}
        statuses = [part.strip() for part in self.status.split(",") if part.strip()]
        engine = EngineConfig(self.store, **settings)
        return told(lambda progress: retry(engine, statuses, progress), self.json).status
