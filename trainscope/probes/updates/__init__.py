"""The update that each optimizer's formula asks for, in float32, written once as its paper or source has it."""
