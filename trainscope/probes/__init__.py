"""Probes measure a training and return records. They never write, change or decide anything.

Never imports diffusers, the run log, the trainer or the engine, so that they serve any PyTorch loop.
"""
