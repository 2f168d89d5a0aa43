"""Passes or fails a run beside one or several baseline runs. Draws nothing and knows no output format."""
