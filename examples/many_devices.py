"""A script that trains in one process, or in as many as `torchrun` starts."""

# [script]
import torch

import vpeft

torch.manual_seed(0)  # a model with random weights must be the same in every process
backbone = vpeft.create_backbone("pocket_vit")
data = vpeft.open_data(vpeft.DataConfig(source="digits", per_class=30))
data = data.prepared(vpeft.Preprocessing.from_model(backbone))

tuned = vpeft.tune(backbone, vpeft.methods.LoRA(rank=8), num_classes=len(data.labels))
result = vpeft.fit(tuned, data.train, data.val, epochs=2, out="runs/script")
print(result.val and result.val.sentence())
# [/script]
