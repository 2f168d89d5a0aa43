"""Proof: runs cases with the real trainer, injects faults, and judges whether a remedy cures."""
