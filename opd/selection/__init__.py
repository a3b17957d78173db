"""Which tokens and which rollouts train. One rule, one small file; a selector sees the token table and nothing else.

`base.py` chooses (top, bottom, sample, gate); `scaling.py` holds the clip and min–max that scores share. Tokens:
`all_tokens.py`, `random_share.py`, `first_n.py`, `entropy.py`, `divergence.py`, `soft_or.py`, `q3.py`, `dial.py`,
`d3s.py`, `opener.py`, `surprisal.py`, `soft_gate.py`. Rollouts: `rollouts/`.
To add one: write its file (score, reference, failure case) and add it to SELECTORS.
"""

from opd.selection.all_tokens import AllTokens
from opd.selection.base import TokenSelector
from opd.selection.d3s import D3S
from opd.selection.dial import Dial
from opd.selection.divergence import DivergenceSelector
from opd.selection.entropy import Entropy
from opd.selection.first_n import FirstN
from opd.selection.opener import Opener
from opd.selection.q3 import Q3
from opd.selection.random_share import RandomShare
from opd.selection.soft_gate import SoftGate
from opd.selection.soft_or import SoftOr
from opd.selection.surprisal import Surprisal

SELECTORS: dict[str, type[TokenSelector]] = {
    "all": AllTokens,
    "random": RandomShare,
    "first_n": FirstN,
    "entropy": Entropy,
    "divergence": DivergenceSelector,
    "soft_or": SoftOr,
    "q3": Q3,
    "dial": Dial,
    "d3s": D3S,
    "opener": Opener,
    "surprisal": Surprisal,
    "soft_gate": SoftGate,
}
