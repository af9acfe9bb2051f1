"""Several fine-tuned models of one backbone made into one model, without their training data."""
