"""One model for each `optimizer.type`, by what they have in common."""
