"""A policy file that cannot be is refused at once, whatever it holds."""

from __future__ import annotations

import json

from refusals import MISSPELT, table
from replies import one_line

TINY = ("--workload", "./tiny.py:tiny")
NO_SHARE = "nothing to remove: it gives no layer a sparsity above 0, such as 0.5; --bits 8 rounds whole layers"
POLICIES = {
    "empty": ("{}", NO_SHARE),
    "unknown": ('{"conv0.wieght": 0.5}', "unknown layer 'conv0.wieght': did you mean 'conv0.weight'"),
    "prefixed": ('{"module.conv0.weight": 0.5}', "'module.conv0.weight': did you mean 'conv0.weight'"),
    "not prunable": ('{"bn0.weight": 0.5}', "'bn0.weight'"),
    "above": ('{"conv0.weight": 1.2}', "sparsity of 'conv0.weight' must satisfy 0 <= sparsity < 1, got 1.2"),
    "all": ('{"conv0.weight": 1.0}', "got 1.0; nearest valid: 0.99"),
    "below": ('{"conv0.weight": -0.1}', "got -0.1; nearest valid: 0.0"),
    "nan": ('{"conv0.weight": NaN}', "NaN is not a valid number here"),
    "infinity": ('{"conv0.weight": Infinity}', "Infinity is not a valid number here"),
    "text": ('{"conv0.weight": "0.5"}', "sparsity of 'conv0.weight' must be a number"),
    "true": ('{"conv0.weight": true}', "got True"),
    "null": ('{"conv0.weight": null}', "got None"),
    "list": ("[0.5]", "must be a JSON object, got list"),
    "truncated": ("{", "not valid JSON"),
    "no byte": ("", "not valid JSON"),
    "version": ('{"version": 9, "sparsity": {}}', "policy version must be 1, got 9"),
    "key": ('{"version": 1, "sparsity": {}, "granularty": "channel"}', "'granularty': did you mean 'granularity'"),
    "all zero": ('{"conv0.weight": 0.0, "conv1.weight": 0}', NO_SHARE),
    "denormal": ('{"conv1.weight": 5e-324}', "nothing to remove: 'conv1.weight' stays whole"),
    "unknown, granularity only": (
        '{"version": 1, "sparsity": {"conv1.weight": 0.25}, "granularity": {"conv1.wieght": "channel"}}',
        f"unknown layer 'conv1.wieght': {MISSPELT} 'conv1.weight'",
    ),
    "without end": (
        '{"version": 1, "sparsity": {"conv1.weight": 0.25}, "schedule": {"kind": "iterative", "rounds": 1000000000}}',
        "schedule rounds must be at most 1000, got 1000000000",
    ),
    "steep": (
        '{"version": 1, "sparsity": {"conv1.weight": 0.25}, "schedule": {"kind": "polynomial", "exponent": 1e308}}',
        "schedule exponent must be at most 1000, got 1e+308",
    ),
    "nested": ("[" * 10_000, "nested too deeply"),
    "nested objects": ('{"a":' * 100 + "1" + "}" * 100, "nested too deeply"),
    "long number": ('{"conv1.weight": ' + "9" * 100_000 + "}", "a number of 100000 digits is not valid here"),
    "long name": (json.dumps({"x" * 10**6: 0.25}), "unknown layer 'xxx"),
    "many names": (json.dumps({f"x{n}": 0.25 for n in range(200_000)}), "unknown layer 'x0'"),
    "surrogate": ('{"\\ud800": 0.25}', "unknown layer '\\ud800'"),
    "escapes": ('{"\\u001b[2K\\r": 0.25}', "unknown layer '\\x1b[2K\\r'"),
    "not text": ("\udcff", "it is not a text file in UTF-8 (byte 0)"),
    "twice": ('{"a": 0.25, "a": 0.5}', "duplicate key 'a': keep one of them"),
    "infinite": ('{"conv1.weight": 1e999}', "got inf"),
}


@table(POLICIES)
def test_a_policy_file_is_refused_at_once(main, place, tmp_path, case):
    content, said = case
    (place / "policy.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    reply = main("apply", "policy.json", "--root", tmp_path / "root", *TINY, "--out", tmp_path / "out")
    one_line(reply, said)
    assert "policy.json" in reply.err and len(reply.err) < 5000
    assert not (tmp_path / "out").exists() and not (tmp_path / "root" / "cache").exists()


def test_a_policy_with_a_byte_order_mark_is_read(main, place, tmp_path):
    (place / "policy.json").write_bytes(b'\xef\xbb\xbf{"conv9.weight": 0.25}')
    reply = main("apply", "policy.json", "--root", tmp_path / "root", *TINY, "--out", tmp_path / "out")
    one_line(reply, "unknown layer 'conv9.weight'")
