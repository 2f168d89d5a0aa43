"""Training data: finding, checking and splitting samples, their order, masks, and what the encoders make of them."""
