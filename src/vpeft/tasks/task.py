"""The contract of a task lives in vpeft/task.py."""

from vpeft.task import *  # noqa: F403
from vpeft.task import (  # noqa: F401
    DEFAULT,
    BadOption,
    Leading,
    Prediction,
    Task,
    UnknownTask,
    UnsuitableTargets,
    all_tasks,
    get_task,
    register_task,
)
