"""Whole-sequence functions for the CPU, compiled by numba, and what they stand on."""

from __future__ import annotations
