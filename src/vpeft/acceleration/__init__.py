"""Less work for the same numbers: rewrites of a tuned model that are chosen from its plan, proved, and taken off again.

One file is one idea. None knows a method or a backbone by name: an idea looks at places, verbs and layers, is tried on
two images against the plain model, and is kept only where logits and gradients agree.
"""
