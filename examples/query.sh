#!/usr/bin/env bash
set -euo pipefail

# [run]
vpeft bench --suite digits --tier smoke --methods linear_probe,ssf --out ledger
vpeft query "select label, round(avg(score), 3) as score, sum(wall_seconds) as seconds
             from runs where purpose = 'final' group by label order by score desc" --ledger ledger
vpeft query "select label, epoch, value from epochs join runs using (key)
             where measure = 'train_loss' order by label, epoch" --ledger ledger --format csv > losses.csv
vpeft report ledger --html page.html
# [/run]
