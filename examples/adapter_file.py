"""What an adapter file holds, and how several of them share one backbone."""

import torch

import vpeft

# [save]
backbone = vpeft.create_backbone("pocket_vit")
tuned = vpeft.tune(backbone, vpeft.methods.LoRA(rank=4), num_classes=2, name="cats")
tuned.save("cats.safetensors", labels=["cat", "no cat"])
# [/save]

# [read]
manifest = vpeft.read_manifest("cats.safetensors")
print(manifest.backbone, manifest.labels, manifest.methods[0].fields)
# [/read]

# [several]
tuned.attach(vpeft.methods.AdaptFormer(bottleneck=8), name="dogs", num_classes=3)
images = torch.zeros(1, 3, *tuned.description.facts.image_size)
for name in ("cats", "dogs"):
    with tuned.enable(name):
        print(name, tuple(tuned(images).shape))
for logits in tuned.eval().each(images.expand(3, -1, -1, -1), ["cats", "dogs", "cats"]):  # one pass for all three
    print(tuple(logits.shape))
# [/several]

# [merge]
merged = vpeft.load(vpeft.create_backbone("pocket_vit"), "cats.safetensors").eval()
before = merged(images)
merged.merge("cats")  # folded into the weights: nothing is computed besides the backbone
assert torch.allclose(merged(images), before, atol=1e-4)
# [/merge]

# [refuse]
try:
    vpeft.load(vpeft.create_backbone("vit_tiny_patch16_224", pretrained=False), "cats.safetensors")
except vpeft.VpeftError as error:
    print(error)
# [/refuse]
