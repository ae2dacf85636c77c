"""Similarity search over an embedding matrix that is built once, and attached without copying ever after.

``python -m apps.vectors build|search|add|remove|verify|serve|demo``; docs/vectors.md is its page.
"""
