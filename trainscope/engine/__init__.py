"""The judge: loads rules, evaluates them over a run log, tells one story out of what fired.

Reads tables, never a run directory. Never imports torch, the trainer or the report.
"""
