"""One file per family of backbones; each registers the function that describes models of some classes."""
