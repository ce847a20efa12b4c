"""A checksum in our JSON files, so that a changed number in them is noticed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from spaces.strict_json import parse_object

KEY = "sha256"


def sealed(text: str) -> str:
    """The JSON object `text`, with its checksum added as the last entry."""
    data = json.loads(text)
    return json.dumps({**data, KEY: _checksum(data)})


def unsealed(text: str) -> str:
    """The JSON object that was sealed; one without a checksum is returned as it is.

    Raises:
        ValueError: it is not JSON, or not what was sealed.
    """
    data = parse_object(text, constants=True)
    if KEY not in data:
        return text
    seal = data.pop(KEY)
    if seal != _checksum(data):
        raise ValueError("its numbers are not those that were written (checksum)")
    return json.dumps(data)


def _checksum(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
