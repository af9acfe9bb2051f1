"""Accelerations: temporary rewrites of a tuned model that compute the same numbers with less work.

Each file holds one acceleration. It looks at places, verbs and layers, and knows no method and no backbone by name. It
is tested on two images and used only if outputs and gradients equal those of the plain model.
"""
