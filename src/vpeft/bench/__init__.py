"""The benchmark: suites, protocols, run keys, the ledger, the runner and the statistics.

```python
from vpeft.bench import BenchConfig, run_bench

ledger = run_bench(BenchConfig(suite="digits", methods=("linear_probe", "lora"), out="ledger"))
```
"""

from vpeft.bench.config import BenchConfig
from vpeft.bench.ledger import Ledger, LedgerError, open_ledger
from vpeft.bench.record import RunRecord, State
from vpeft.bench.runner import run_bench

__all__ = ["BenchConfig", "Ledger", "LedgerError", "RunRecord", "State", "open_ledger", "run_bench"]
