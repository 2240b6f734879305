"""Bytes: the server's side, the upstream's side, and what is relayed between them.

Knows nothing of money, limits or models. Imports from this package only what errors.py holds.
"""
