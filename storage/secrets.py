"""Passwords and signatures that stand in addresses: nothing that is printed or stored shows them."""

from __future__ import annotations

import re

_SECRETS = re.compile(r"(?P<kind>[A-Za-z][\w+.-]*://)(?:[^/\s?'\"]*@)?(?P<rest>[^\s?'\"]*)(?P<query>\?[^\s'\"]*)?")


def shown(text: str) -> str:
    """A text with the secrets of its addresses taken out: user and password, and what follows a `?`."""
    return _SECRETS.sub(lambda found: f"{found['kind']}{found['rest']}" + ("?..." if found["query"] else ""), text)
