"""Passwords and tokens of addresses, wherever in a text, are masked, and nothing else of it."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from search.masking import masked, masked_address

WORDS = st.text("abcXYZ09.-_", min_size=1, max_size=8)
SECRETS = st.text("Q7@/:%#?&+=~", min_size=1, max_size=8).map("s3cret".join).filter(lambda one: "s3cret" in one)
ROUND = st.sampled_from([("", ""), ("cannot use '", "' (refused)"), ('{"url": "', '"}'), ("see ", " or ")])
HOSTS = st.sampled_from(["host", "mlflow.local:5000", "127.0.0.1:80/path"])
WEB, DATABASES = (
    st.sampled_from(["http", "https", "HTTPS", "git+https"]),
    st.sampled_from(["postgresql+psycopg", "mysql"]),
)


@given(WEB, SECRETS, HOSTS, ROUND, st.booleans())
def test_a_token_alone_before_the_host_is_masked(scheme, secret, host, around, quoted):
    given_secret = quote(secret, safe="") if quoted else secret.replace(":", "")
    text = f"{around[0]}{scheme}://{given_secret}@{host}{around[1]}"
    assert masked(text) == f"{around[0]}{scheme}://***@{host}{around[1]}"


@given(st.one_of(WEB, DATABASES), WORDS, SECRETS, HOSTS, ROUND, st.booleans())
def test_a_password_is_masked_and_its_user_is_not(scheme, user, secret, host, around, quoted):
    given_secret = quote(secret, safe="") if quoted else secret
    text = f"{around[0]}{scheme}://{user}:{given_secret}@{host}{around[1]}"
    assert masked(text) == f"{around[0]}{scheme}://{user}:***@{host}{around[1]}"


@given(DATABASES, WORDS, HOSTS)
def test_the_user_of_a_database_is_no_secret(scheme, user, host):
    assert masked(f"{scheme}://{user}@{host}") == f"{scheme}://{user}@{host}"


@given(st.one_of(WEB, DATABASES), HOSTS, ROUND)
def test_an_address_without_a_secret_stays(scheme, host, around):
    text = f"{around[0]}{scheme}://{host}{around[1]} by ann@example.org"
    assert masked(text) == text


@given(st.sampled_from(["", "http:", "https:/", "http://", "htps://", "ann:", "ann:a://", "//"]), SECRETS, HOSTS)
def test_an_address_that_is_none_shows_no_secret(start, secret, host):
    bare = secret.replace(":", "")  # what stands before one is a user
    assert "s3cret" not in masked_address(f"{start}{bare}@{host}")


def test_a_second_address_in_a_text_is_masked_too():
    said = masked("http://s3cret@a/ https://ann:s3cret@b http://c?access_token=s3cret&page=2")
    assert said == "http://***@a/ https://ann:***@b http://c?access_token=***&page=2"
