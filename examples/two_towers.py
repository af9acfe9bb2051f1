"""Two backbones of one width, tuned together with one pair of factors."""

import torch
from torch import nn

import vpeft
from vpeft.methods import PETAL

# [share]
method = PETAL(rank=8)
first, second = (vpeft.tune(vpeft.create_backbone("pocket_vit"), method, show=False) for _ in range(2))
PETAL.share(first, second)  # one U, V and core; each tower keeps a mixing vector for each of its matrices
# [/share]

# [train]
parameters = {id(p): p for tower in (first, second) for _, p in tower.trainable()}.values()
optimizer = torch.optim.AdamW(parameters, lr=1e-2)
views = [torch.randn(4, 3, *first.description.facts.image_size) for _ in range(2)]
for _ in range(3):
    one, two = first.features(views[0]), second.features(views[1])
    scores = nn.functional.normalize(one, dim=1) @ nn.functional.normalize(two, dim=1).T / 0.1
    loss = nn.functional.cross_entropy(scores, torch.arange(4))  # the two features of a pair belong together
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}")
# [/train]

print(f"{sum(p.numel() for p in parameters):,} parameters train together")

# [save]
for name, tower in (("first", first), ("second", second)):
    tower.save(f"{name}.safetensors")
again = [vpeft.load(vpeft.create_backbone("pocket_vit"), f"{name}.safetensors") for name in ("first", "second")]
PETAL.share(*again)  # each file is whole; this ties the loaded towers again
# [/save]
