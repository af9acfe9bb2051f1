"""One adapter with several heads: trained together, from separate data sets, saved and loaded."""

# [train]
import torch

import vpeft
from vpeft.tasks.depth import Depth
from vpeft.tasks.multi_task import MultiTask
from vpeft.tasks.semantic_segmentation import SemanticSegmentation

torch.manual_seed(0)
parts = {
    "regions": SemanticSegmentation(labels=("dark", "light")),
    "depth": Depth(head="linear_map", scale=1.0),
}
model = vpeft.create_backbone("pocket_vit", image_size=64)
tuned = vpeft.tune(model, vpeft.methods.LoRA(rank=4), task=MultiTask(parts=parts))
print(tuned.plan().totals())

images = torch.randn(8, 3, 64, 64)
samples = [(image, {"regions": (image[0] > 0).long(), "depth": image[1].abs() + 0.5}) for image in images]
settings = vpeft.Optimisation(epochs=1, batch=4)
result = vpeft.fit_tasks(tuned, samples, samples, weights="uncertainty", optimisation=settings, progress=False)
assert {"regions/loss", "depth/loss"} <= set(result.history[-1].train)
outputs = tuned.eval()(images)
assert set(outputs) == {"regions", "depth"}
# [/train]

# [apart]
apart = {
    "regions": [(image, target["regions"]) for image, target in samples],
    "depth": [(image, target["depth"]) for image, target in samples[:4]],
}
vpeft.fit_tasks(tuned, apart, mixing="temperature", temperature=2.0, optimisation=settings, progress=False)
# [/apart]

# [load]
again = vpeft.load(vpeft.create_backbone("pocket_vit", image_size=64), tuned.save("tasks.safetensors")).eval()
with again.for_tasks("depth"):
    assert torch.equal(again(images)["depth"], tuned(images)["depth"])
# [/load]
