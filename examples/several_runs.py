"""Several learning rates in one pass over the images: the frozen trunk is computed once for all."""

import copy

import vpeft

base = vpeft.create_backbone("pocket_vit")
data = vpeft.open_data(vpeft.DataConfig(source="digits", per_class=30))
data = data.prepared(vpeft.Preprocessing.from_model(base))
classes = len(data.labels)

# [together]
rates = (1e-3, 3e-3, 1e-2)
runs = [
    vpeft.Run(
        vpeft.tune(copy.deepcopy(base), vpeft.methods.LinearProbe(), num_classes=classes),
        vpeft.Optimisation(lr=lr, epochs=4),
    )
    for lr in rates
]
results = vpeft.fit_together(runs, data.train, data.val, progress=False)
for lr, result in zip(rates, results, strict=True):
    print(lr, result.val and result.val.sentence())
# [/together]
