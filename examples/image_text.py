"""Image-text models: classes by their names, few images of each, pairs of images and texts, retrieval."""

import numpy as np
import torch

import vpeft
from vpeft.data.pocket_captions import draw_captioned
from vpeft.tasks.classification_by_name import ClassificationByName
from vpeft.tasks.contrastive import Contrastive

# The weights are random here; the first lines of work are create_backbone("host::hf:FOLDER") or open_clip's models.
torch.manual_seed(0)

# [names]
clip = vpeft.create_backbone("pocket_clip", pretrained=False)
names = ClassificationByName(["red circle", "blue square", "ring"], templates=("a photo of a {}.", "a small {}"))
nothing = vpeft.methods.LinearProbe()  # tunes nothing: zero-shot
tuned = vpeft.tune(clip, {"image": nothing}, task=names).eval()
print(tuned(torch.randn(2, 3, 64, 64)).softmax(1))  # (images, names)
# [/names]
tuned.detach()

# [methods]
LoRA, BitFit = vpeft.methods.LoRA, vpeft.methods.BitFit
tuned = vpeft.tune(clip, {"image": LoRA(rank=2), "text": BitFit()}, task=names)
data = [(torch.randn(3, 64, 64), number % 3) for number in range(12)]
settings = vpeft.Optimisation(epochs=2, batch=6, lr=1e-3)
vpeft.fit(tuned, data, optimisation=settings, task=names, progress=False)
vpeft.rename_classes(tuned, ["green bar", "white cross"])  # what was learnt in the towers serves other names
print(tuned.eval()(torch.randn(2, 3, 64, 64)).shape)
# [/methods]
tuned.detach()

# [pairs]
pixels, captions = draw_captioned(16, np.random.Generator(np.random.PCG64(0)))
images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
pairs = [(image, text) for image, text in zip(images, captions, strict=True)]
task = Contrastive()  # InfoNCE; Contrastive(loss="sigmoid") for SigLIP's
tuned = vpeft.tune(clip, {"text": LoRA(rank=4)}, task=task)
result = vpeft.fit(tuned, task.dataset(pairs, True), task.dataset(pairs, False), optimisation=settings, progress=False)
print(result.val.values)  # R@1, 5, 10: text_r1 is of texts found for an image
# [/pairs]

# [words]
outputs = tuned.eval()(images[:2], ["two red rings", "one blue bar"])  # words become tokens by the model's tokenizer
print((outputs["image"] @ outputs["text"].T).shape)
# [/words]
