"""Methods for models of images and texts: learnt words, prompts in both towers, adapters on features, a cache."""

import torch

import vpeft
from vpeft.methods import CLIPAdapter, CoOp, MaPLe, TipAdapter
from vpeft.tasks.classification_by_name import ClassificationByName

# [words]
names = ("cat", "ball", "boat", "plane")
images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
labels = torch.arange(8) % 4
clip = vpeft.create_backbone("host::pocket_clip", pretrained=False)  # or host::open_clip:ViT-B-16-quickgelu/openai
# the words around the names are learnt, so the names are their own texts
task = ClassificationByName(names, templates=("{}.",))
tuned = vpeft.tune(clip, {"text": CoOp(tokens=4, words="a photo of a")}, task=task)
print(tuned.plan())
# [/words]


# [learn]
def learn(tuned, steps=3):
    """Let the images belong to their names."""
    optimizer = torch.optim.SGD([parameter for _, parameter in tuned.trainable()], lr=0.02, momentum=0.9)
    tuned.train()
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(tuned(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{tuned.methods()[0].name}: loss {loss.item():.3f}")


learn(tuned)
tuned.save("coop.safetensors")
clip = tuned.detach()
# [/learn]

# [both]
prompts = vpeft.tune(clip, {"*": MaPLe(tokens=2, depth=3)}, task=ClassificationByName(names))
learn(prompts)
clip = prompts.detach()
features = vpeft.tune(clip, {"image": CLIPAdapter(ratio=0.2)}, task=ClassificationByName(names))
learn(features)
clip = features.detach()
# [/both]

# [cache]
cache = vpeft.tune(clip, {"image": TipAdapter(passes=2)}, task=ClassificationByName(names))
cache.prepare([(images, labels)])  # the features of the few images are all that it needs
print(TipAdapter.search_strengths(cache, [(images, labels)]))  # with images of validation
# [/cache]
