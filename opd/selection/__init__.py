"""Which tokens train. One rule, one small file; a selector sees the token table and nothing else.

`base.py` chooses (top, bottom, sample, gate); `scaling.py` holds the clip and min–max that scores share;
`all_tokens.py`, `random_share.py`, `entropy.py`, `soft_or.py` are the rules.
To add one: write its file (score, reference, failure case) and add it to SELECTORS.
"""

from opd.selection.all_tokens import AllTokens
from opd.selection.base import TokenSelector
from opd.selection.entropy import Entropy
from opd.selection.random_share import RandomShare
from opd.selection.soft_or import SoftOr

SELECTORS: dict[str, type[TokenSelector]] = {
    "all": AllTokens,
    "random": RandomShare,
    "entropy": Entropy,
    "soft_or": SoftOr,
}
