"""Hosts: a model with two towers tuned by one adapter, with methods by tower, and with one pair of factors for both."""

import torch
from torch import nn

import vpeft


# [host]
class Pairs(nn.Module):
    """Two images -> how alike they are, (B, B): any model with towers inside is a host."""

    def __init__(self):
        super().__init__()
        self.photo = vpeft.create_backbone("pocket_vit")
        self.sketch = vpeft.create_backbone("pocket_vit")
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, photos, sketches):
        photos = nn.functional.normalize(self.photo(photos), dim=1)
        sketches = nn.functional.normalize(self.sketch(sketches), dim=1)
        return self.scale * photos @ sketches.T


# [/host]

# [tune]
LoRA, VPTDeep = vpeft.methods.LoRA, vpeft.methods.VPTDeep
tuned = vpeft.tune(Pairs(), {"photo": LoRA(rank=4), "sketch": [LoRA(rank=2), VPTDeep(tokens=2)]}, train=("scale",))
print(tuned.plan())  # the places are photo.blocks.0.attn.q, sketch.blocks.0 ...
# [/tune]


# [train]
def learn(tuned, steps=3):
    """Let the two images of a pair belong together."""
    size = tuned.description.towers["photo"].facts.image_size
    photos, sketches = (torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    optimizer = torch.optim.AdamW([parameter for _, parameter in tuned.trainable()], lr=1e-2)
    tuned.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(tuned(photos, sketches), torch.arange(4))  # the host's own forward
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"loss {loss.item():.3f}")


learn(tuned)
# [/train]

# [save]
tuned.save("pairs.safetensors")
again = vpeft.load(Pairs(), "pairs.safetensors")  # which methods are on which tower is in the file
host = tuned.detach()  # bit by bit the model that was given
# [/save]

# [share]
PETAL = vpeft.methods.PETAL
shared = vpeft.tune(Pairs(), {"*": PETAL(rank=8)})  # one U, V and core; each tower keeps a vector for each matrix
learn(shared)
# [/share]

print(f"{sum(parameter.numel() for _, parameter in shared.trainable()):,} parameters train together")
