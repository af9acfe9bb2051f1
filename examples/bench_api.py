"""A benchmark from Python: run it, then read its records."""

# [run]
import vpeft

ledger = vpeft.run_bench(
    vpeft.BenchConfig(suite="digits", tier="smoke", methods=("linear_probe", "ssf"), out="ledger", show=False)
)
for record in ledger:
    assert record.scores is not None and record.costs is not None
    print(record.label, record.task, record.scores.sentence(), record.costs.trainable)
# [/run]
