"""Several learning rates in one pass over the images: the frozen trunk is computed once for all."""

import copy

import vpeft
from vpeft.data import DataConfig, Preprocessing, open_data
from vpeft.training.optimisation import Optimisation

base = vpeft.create_backbone("pocket_vit")
data = open_data(DataConfig(source="digits", per_class=30)).prepared(Preprocessing.from_model(base))
classes = len(data.labels)

# [together]
rates = (1e-3, 3e-3, 1e-2)
runs = [
    vpeft.Run(
        vpeft.tune(copy.deepcopy(base), vpeft.methods.LinearProbe(), num_classes=classes, show=False),
        Optimisation(lr=lr, epochs=4),
    )
    for lr in rates
]
results = vpeft.fit_together(runs, data.train, data.val, progress=False)
for lr, result in zip(rates, results, strict=True):
    print(lr, result.val and f"{result.val.top1:.1%}")
# [/together]
