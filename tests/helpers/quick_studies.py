"""Options by which a study of the tiny workload takes a second and is the same on every machine."""

from __future__ import annotations

QUICK = {"max_size": 0.5, "finalists": 0, "cost": "macs"}
