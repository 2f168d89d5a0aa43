"""Runs side by side: how they differ in configuration, in what was found, and in what was measured."""
