"""Text without the passwords that are in its URLs."""

from __future__ import annotations

import re

MASK = "***"
_IN_USER = re.compile(r"(://[^:@/\s'\"]*:)[^\s'\"]*(?=@)")
_IN_QUERY = re.compile(r"([?&;][^=&\s]*(?:pass|token|secret|key)[^=&\s]*=)[^&\s'\"]*", re.IGNORECASE)


def masked(text: str) -> str:
    """The text, with the password of every URL in it masked: the one before the host, and those among its options.

    A password ends at the last `@` before a space or a quote, since one that nobody quoted may hold `@`, `/` or `:`.

    >>> masked("postgresql+psycopg://ann:s3/c@ret@db:5432/studies?sslpassword=x&connect_timeout=3 refuses ann")
    'postgresql+psycopg://ann:***@db:5432/studies?sslpassword=***&connect_timeout=3 refuses ann'
    >>> masked("http://mlflow.local:5000/#/experiments/1")
    'http://mlflow.local:5000/#/experiments/1'
    """
    return _IN_QUERY.sub(rf"\1{MASK}", _IN_USER.sub(rf"\1{MASK}", text))
