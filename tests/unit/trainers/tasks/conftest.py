"""What all tests of tasks share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def small(one_thread: None) -> None:
    """Their models are tiny."""
