"""Compiles the traced step of a recurrent network into one native program, by LLVM."""

from __future__ import annotations
