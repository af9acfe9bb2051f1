"""Where edits can act: backbones described as named places. Knows no method."""
