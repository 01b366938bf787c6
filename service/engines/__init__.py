"""Engines that sample from a model."""
