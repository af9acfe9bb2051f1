# [run]
from vpeft.training.recipe import Recipe
from vpeft.training.search_space import Space
from vpeft.training.search_strategies import SearchPlan
from vpeft.training.space_search import search_space

recipe = Recipe.from_mapping(
    {
        "backbone": "pocket_vit",
        "data": {"source": "pocket/count"},
        "method": "lora",
        "optimisation": {"epochs": 2},
        "out": "runs/space",
    }
)
space = Space.parse(["lr=log(1e-3, 1e-1, 2)", "method=choice(linear_probe, lora)"], recipe)
found = search_space(recipe, space, SearchPlan(by="grid"), progress=False)
for trial in found.trials:
    print(trial.sentence(), trial.state, trial.score, trial.curve)
assert found.run is not None and found.run.test is not None
print(found.run.test.sentence())
# [/run]
