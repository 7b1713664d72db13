"""Pydantic models of every JSON the user writes, and of the sidecar of a generated clip.

Objects are frozen and checked when they are read; defaults live here and nowhere else.
"""
