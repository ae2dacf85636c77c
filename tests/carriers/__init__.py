"""Carriers: who keeps memfds."""
