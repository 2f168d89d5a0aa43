"""The run directory: its tables, the crash-safe writer, the reader, and coverage. Never imports torch."""
