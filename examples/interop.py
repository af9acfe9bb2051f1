"""An adapter in other libraries: peft, timm, onnxruntime, the Trainer of transformers, trackers."""

import onnxruntime
import peft
import timm
import torch
import transformers
from safetensors.numpy import load_file

import vpeft
from vpeft.interop.backbone_export import export_backbone
from vpeft.interop.onnx_export import export_onnx
from vpeft.interop.peft_export import export_peft
from vpeft.interop.peft_import import import_peft

torch.manual_seed(0)
images = torch.rand(2, 3, 64, 64)
task = vpeft.get_task("classification")(labels=("cat", "dog"))

# [trainer]
tuned = vpeft.tune(vpeft.create_backbone("pocket_vit"), vpeft.methods.LoRA(rank=4), task=task)
rows = [{"pixel_values": image, "labels": number} for number, image in enumerate(images)]
settings = transformers.TrainingArguments("trainer", max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
transformers.Trainer(vpeft.hf.wrap(tuned), settings, train_dataset=rows).train()
file = tuned.eval().save("a.safetensors")
# [/trainer]

# [track]
with vpeft.Tracked(vpeft.tracker("tensorboard", "events"), {"method": "lora(rank=4)"}) as tracked:
    vpeft.fit(tuned, [(image, number) for number, image in enumerate(images)], epochs=2, after_epoch=tracked)
# [/track]

# [peft]
tuned = vpeft.load(vpeft.create_backbone("pocket_vit"), "a.safetensors").eval()
print(export_peft(tuned, "peft_folder").usage)
model = peft.PeftModel.from_pretrained(timm.create_model("pocket_vit", pretrained=True, num_classes=2), "peft_folder")
assert torch.allclose(model.eval()(images), tuned(images), atol=1e-4)

back = import_peft(vpeft.create_backbone("pocket_vit"), "peft_folder").tuned
assert torch.allclose(back(images), tuned(images), atol=1e-4)
# [/peft]

# [backbone]
print(export_backbone(tuned, "merged", labels=["cat", "dog"]).usage)
plain = timm.create_model("local-dir:merged", pretrained=True).eval()  # a model of timm, without vpeft
assert torch.allclose(plain(images), tuned(images), atol=1e-4)
# [/backbone]

# [onnx]
export_onnx(tuned, "any.onnx", weights="inputs")  # the adapter's tensors are inputs of the graph
session = onnxruntime.InferenceSession("any.onnx")
(answers,) = session.run(None, {"images": images.numpy(), **load_file("a.safetensors")})  # any adapter of this shape
assert torch.allclose(torch.from_numpy(answers), tuned(images), atol=1e-4)
# [/onnx]

# [timm]
extractor = vpeft.timm_model(tuned, num_classes=0)
tokens = extractor.forward_features(images)
assert extractor(images).shape == (2, extractor.num_features)
# [/timm]
