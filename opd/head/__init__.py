"""The selective lm_head: statistics and losses over the vocabulary, of at most a tile's logits at a time.

In reading order: `settings.py` (what every pass must know), `weights.py` (what an lm_head is, and hidden states that
wait for one), `cost.py` (how work is cut, and what it costs), `shard.py` (a head cut by vocabulary), `strips.py`
(logits strip by strip of the vocabulary), `kernels.py` (elementwise work, fused or as plain torch), `sums.py`
(normalisers, entropies and divergences from strips), `statistics.py` (those and log-probs of each row), `pay.py` (what
rows pay in a term), `gradient.py` (where gradients add up), `block.py` (what terms make of a block), `stream.py` (terms
strip by strip), `tile.py` and `outcomes.py` (whole rows, for terms that need them), `loss.py` (all of it, on retained
rows only). Pure mathematics on tensors: the module that owns the weights is in `opd/student.py`.

A *strip* is some columns of the vocabulary for all rows at hand, [v, n]; a *block* of it fits a core's cache; a *sweep*
goes over all strips. A *slab* is the rows that are worked on at once. A *tile* is a few rows with all their columns.
"""
