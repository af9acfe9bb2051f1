"""Clips as inputs: reading videos and folders of frames, choosing frames, and bringing them to the size of a model."""
