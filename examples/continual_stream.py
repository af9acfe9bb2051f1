"""A stream of classes in Python: any learner, the accuracy matrix, and what follows from it."""

# [stream]
from functools import partial

import vpeft
from vpeft.regimes.continual import learn_stream
from vpeft.regimes.learner import Setting, make_learner
from vpeft.regimes.stream import class_stream

make = partial(vpeft.create_backbone, "pocket_vit")
data = vpeft.open_data(vpeft.DataConfig(source="digits", per_class=20))
stream = class_stream(data, vpeft.Preprocessing.from_model(make()), increment=2, order_seed=0)
setting = Setting(make, vpeft.Optimisation(epochs=1, device="cpu"), seed=0, tasks=len(stream.tasks))

outcome = learn_stream(make_learner("simple_cil"), stream, setting)
print(outcome.matrix.metrics())
# [/stream]

# [use]
tuned = outcome.learning.for_file()
tuned.save("continual.safetensors")
again = vpeft.load(make(), "continual.safetensors")
print(again.task.labels == stream.labels)
# [/use]
