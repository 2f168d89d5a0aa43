"""The probes on other people's training loops: attached by hand, by a callback, or to a script that knows of nothing.

Never imports the configuration, the trainer, the engine or diffusers; torch is first imported by `attach`, so that the
command line can start a script without it.
"""
