"""What a retained token pays. One objective, one small file; all are summed by `opd/head/loss.py`.

`base.py` says what the three kinds are. Dense (whole distributions; `divergence.py` is what the KLs share):
`reverse_kl.py`, `forward_kl.py`, `jsd.py`, `skew_kl.py`, `entropy.py`, `nkd_non_target.py`. Chosen (log-probabilities
of a few tokens): `sampled_reverse_kl.py`, `plackett_luce.py`, `nkd_target.py`, `tgdpo.py`, `constant_penalty.py`,
`task_reward.py`. Rows: `uskd.py`.
To add one: write its file (formula, slope, reference), add it to OBJECTIVES, and the contract tests find it there.
"""

from opd.objectives.base import Objective
from opd.objectives.constant_penalty import ConstantPenalty
from opd.objectives.entropy import EntropyObjective
from opd.objectives.forward_kl import ForwardKL
from opd.objectives.jsd import JSD
from opd.objectives.nkd_non_target import NKDNonTarget
from opd.objectives.nkd_target import NKDTarget
from opd.objectives.plackett_luce import PlackettLuce
from opd.objectives.reverse_kl import ReverseKL
from opd.objectives.sampled_reverse_kl import SampledReverseKL
from opd.objectives.skew_kl import SkewKL
from opd.objectives.task_reward import TaskReward
from opd.objectives.tgdpo import TGDPO
from opd.objectives.uskd import USKD

OBJECTIVES: dict[str, type[Objective]] = {
    "reverse_kl": ReverseKL,
    "forward_kl": ForwardKL,
    "jsd": JSD,
    "skew_kl": SkewKL,
    "entropy": EntropyObjective,
    "nkd_non_target": NKDNonTarget,
    "nkd_target": NKDTarget,
    "sampled_reverse_kl": SampledReverseKL,
    "plackett_luce": PlackettLuce,
    "tgdpo": TGDPO,
    "constant_penalty": ConstantPenalty,
    "task_reward": TaskReward,
    "uskd": USKD,
}
