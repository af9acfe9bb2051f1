"""PPT, performance per trained parameter: one number for accuracy and thrift together.

PPT = M * exp(-log10(P / C + 1)) with C = 1e7; M is the score as a fraction, P the number of trained parameters without
the head. The constant and the logarithm are those that reproduce 84 of the 91 cells printed by V-PETL Bench (the other
seven are roundings or slips of the table). Below 0.3 M parameters the factor exceeds 0.98, so the number is then almost
the plain score; it knows nothing of memory, time, storage or variance, which is why they stand beside it.
"""

from __future__ import annotations

import math

CONSTANT = 1e7


def ppt(score: float, parameters: float) -> float:
    """Performance per parameter of a `score` (a fraction, 0 to 1) reached with `parameters` trained parameters.

    Raises ValueError for a score outside 0 to 1 (percent given by mistake) or a negative number of parameters.
    """
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"PPT takes the score as a fraction from 0 to 1, not {score}; divide percent by 100.")
    if parameters < 0:
        raise ValueError(f"PPT takes a number of parameters that is 0 or more, not {parameters}.")
    return score * math.exp(-math.log10(parameters / CONSTANT + 1.0))
