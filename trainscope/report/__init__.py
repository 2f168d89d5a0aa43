"""Draws reports from report.json's dict and the image files that it names, alone.

Must not know the engine, the rules or the run log: a report is the same when the rest of the run is deleted.
"""
