"""The loop of reinforcement learning: roll out, compare, update, report."""

from __future__ import annotations
