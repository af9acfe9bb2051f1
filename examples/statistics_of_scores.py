"""Compare methods over tasks: intervals, tests, groups, fronts."""

# [data]
import numpy as np

from vpeft.bench.statistics import friedman, mean_ranks, paired_bootstrap, total

generator = np.random.default_rng(0)
tasks = [f"task {number}" for number in range(9)]
difficulty = generator.uniform(0.3, 0.9, (9, 1))
# (tasks, seeds) of each method
scores = {
    name: difficulty + gain + generator.normal(0, 0.01, (9, 3))
    for name, gain in (("probe", -0.1), ("lora", 0.0), ("ssf", 0.002), ("convpass", 0.04))
}
# [/data]

# [pairs]
for name, one in scores.items():
    print(f"{name:9} {total(one, tasks):.3f}, mean rank {mean_ranks(scores)[name]:.2f}")
difference = paired_bootstrap(scores["convpass"], scores["lora"])
print(f"convpass - lora: {difference.value:.3f} [{difference.low:.3f}, {difference.high:.3f}]")
assert difference.excludes(0.0)
assert not paired_bootstrap(scores["ssf"], scores["lora"]).excludes(0.0)
# [/pairs]

# [tests]
from vpeft.bench.statistics import bayesian_signed_rank, cliques, critical_difference, wilcoxon_holm  # noqa: E402

test = friedman(scores)
distance = critical_difference(methods=4, tasks=9)
order = sorted(scores, key=lambda name: test.ranks[name])
bars = cliques(order, lambda one, other: abs(test.ranks[one] - test.ranks[other]) > distance)
print(f"all alike: p = {test.p:.1g}; critical difference {distance:.2f}; not told apart: {bars}")
pairs = wilcoxon_holm(scores)
print(f"convpass against lora: p = {pairs.corrected['lora', 'convpass']:.3f}; smallest possible {pairs.smallest:.3f}")
chance = bayesian_signed_rank(scores["ssf"], scores["lora"], rope=0.01)
print(f"ssf better {chance.better:.2f}, equal within one point {chance.equivalent:.2f}, worse {chance.worse:.2f}")
# [/tests]

# [front]
from vpeft.bench.statistics import pareto_front  # noqa: E402

for name, place in pareto_front(scores, {"probe": 0, "ssf": 20_000, "lora": 30_000, "convpass": 40_000}).items():
    print(f"{name:9} on the front in {place.share:.0%} of draws; a sure step: {place.step}")
# [/front]
