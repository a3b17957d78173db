"""What a retained token pays. One objective, one small file; all are summed by `opd/head/loss.py`.

`base.py` says what a dense objective is; `reverse_kl.py`, `forward_kl.py`, `jsd.py` are the three.
To add one: write its file (formula, slope, reference), add it to OBJECTIVES, and give it a case in tests/objectives.
"""

from opd.objectives.base import DenseObjective
from opd.objectives.forward_kl import ForwardKL
from opd.objectives.jsd import JSD
from opd.objectives.reverse_kl import ReverseKL

OBJECTIVES: dict[str, type[DenseObjective]] = {
    "reverse_kl": ReverseKL,
    "forward_kl": ForwardKL,
    "jsd": JSD,
}
