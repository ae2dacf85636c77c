"""Tests of the application framework."""
