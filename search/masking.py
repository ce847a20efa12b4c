"""Text without the passwords and tokens that are in its URLs."""

from __future__ import annotations

import re

MASK = "***"
_IN_USER = re.compile(r"(://[^:\s'\"]*:)[^\s'\"]*(?=@)")
_ALONE = re.compile(r"(https?://)[^:\s'\"]+(?=@)", re.IGNORECASE)
_IN_QUERY = re.compile(r"([?&;][^=&\s]*(?:pass|token|secret|key)[^=&\s]*=)[^&\s'\"]*", re.IGNORECASE)


def masked(text: str) -> str:
    """The text, with the password of every URL in it masked: the one before the host, and those among its options.

    A password ends at the last `@` before a space or a quote, since one that nobody quoted may hold `@`, `/` or `:`.
    Who is named alone before the host of a web address is masked as well: there tokens stand; a database has users.

    >>> masked("postgresql+psycopg://ann:s3/c@ret@db:5432/studies?sslpassword=x&connect_timeout=3 refuses ann")
    'postgresql+psycopg://ann:***@db:5432/studies?sslpassword=***&connect_timeout=3 refuses ann'
    >>> masked("https://t0ken@mlflow.local and postgresql://ann@db/studies")
    'https://***@mlflow.local and postgresql://ann@db/studies'
    >>> masked("http://mlflow.local:5000/#/experiments/1")
    'http://mlflow.local:5000/#/experiments/1'
    """
    for pattern in (_IN_USER, _ALONE, _IN_QUERY):
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def masked_address(given: str) -> str:
    """What somebody gave as an address, whose scheme may be missing or misspelt: all before its last `@` is masked, but
    for the name of a user with a password.

    >>> masked_address("t0ken@mlflow.local:5000"), masked_address("http:/t0ken@mlflow.local")
    ('***@mlflow.local:5000', 'http:***@mlflow.local')
    >>> masked_address("htps://t0ken@mlflow.local"), masked_address("mysql://ann:t0ken@db/studies")
    ('htps://***@mlflow.local', 'mysql://ann:***@db/studies')
    """
    before, at, host = given.rpartition("@")
    scheme, slashes, user = before.partition("://")
    if slashes and ":" not in scheme:
        return masked(given if ":" in user else f"{scheme}{slashes}{MASK}@{host}")
    first, colon, _ = before.partition(":")
    return masked(f"{first if colon else ''}{colon}{MASK}@{host}") if at else masked(given)
