"""The three lines on the first screen of README.md, on handwritten digits."""

import vpeft

backbone = vpeft.create_backbone("pocket_vit")
preprocessing = vpeft.Preprocessing.from_model(backbone)
data = vpeft.open_data(vpeft.DataConfig(source="digits", per_class=20)).prepared(preprocessing)
# [three]
tuned = vpeft.tune(backbone, vpeft.methods.LoRA(rank=8), num_classes=len(data.labels))
vpeft.fit(tuned, data.train, data.val, epochs=3)
tuned.save("digits.safetensors", labels=data.labels)
# [/three]
