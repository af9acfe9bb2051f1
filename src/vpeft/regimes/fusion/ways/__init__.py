"""Ways to fuse models, one file each; `vpeft.regimes.fusion.way.all_ways` finds them by their names."""
