"""Two adapters of different methods as one model, and where its experts send the tokens of each task."""

import vpeft
from vpeft.regimes.fusion.routing import routing_shares
from vpeft.regimes.one_task import OneTask

# [alone]
data, files = {}, {}
for task, method in {"orientation": vpeft.methods.LoRA(rank=4), "handwriting": vpeft.methods.SSF()}.items():
    images = vpeft.open_data(vpeft.DataConfig(source=f"pocket/{task}", per_class=8))
    model = vpeft.create_backbone("pocket_vit")
    stated = vpeft.Preprocessing.from_model(model)
    data[task] = images.train.prepared(stated)
    tuned = vpeft.tune(model, method, task=vpeft.get_task("classification")(labels=tuple(images.labels)))
    vpeft.fit(tuned, data[task], epochs=1, progress=False)
    files[task] = tuned.save(f"{task}.safetensors", preprocessing=stated.model_dump(mode="json"))
# [/alone]

# [fuse]
fused = vpeft.fuse(vpeft.create_backbone("pocket_vit"), files, "smile(rank=16, gate_rank=4)", out="fused.safetensors")
again = vpeft.load(vpeft.create_backbone("pocket_vit"), "fused.safetensors")
scores = vpeft.evaluate(OneTask(again, "handwriting"), data["handwriting"])
print(f"{100 * scores.values['top1']:.1f} % right")
# [/fuse]

# [routing]
experts = vpeft.read_manifest("fused.safetensors").extra["fusion"]["experts"]
shares = routing_shares(again, data, experts)
shares.picture("where the tokens go").savefig("routing.png")
# [/routing]
