"""Stored responses and replies."""
