"""The same from Python: adapt, score, save, load, predict."""

# [train]
import vpeft

backbone = vpeft.create_backbone("pocket_vit")
preprocessing = vpeft.Preprocessing.from_model(backbone)
data = vpeft.open_data(vpeft.DataConfig(source="digits", per_class=30)).prepared(preprocessing)

tuned = vpeft.tune(backbone, vpeft.methods.LoRA(rank=8), num_classes=len(data.labels))
result = vpeft.fit(tuned, data.train, data.val, epochs=3)
assert result.val is not None and data.test is not None
print(f"validation {result.val.top1:.1%}, test {vpeft.evaluate(tuned, data.test).top1:.1%}")
# [/train]

# [save]
tuned.save("digits.safetensors", labels=data.labels, preprocessing=preprocessing.model_dump(mode="json"))
again = vpeft.load(vpeft.create_backbone("pocket_vit"), "digits.safetensors")
# [/save]

# [predict]
import torch  # noqa: E402

image, label = data.test[0]
with torch.inference_mode():
    probabilities = again.eval()(image[None]).softmax(dim=-1)[0]
best = int(probabilities.argmax())
print(f"this is {data.labels[best]} with {probabilities[best]:.1%}; the label says {data.labels[label]}")
# [/predict]
