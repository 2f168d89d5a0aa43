"""Between the probes and the run log, on any training loop: calls the ones, hands what they return to the other."""
