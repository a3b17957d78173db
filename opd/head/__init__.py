"""The tiled, selective lm_head: statistics and losses over the vocabulary, without ever building the logits.

In reading order: `weights.py` (what an lm_head is, and hidden states that wait for one), `tile.py` (a tile of rows:
both distributions, and the way back to the logits), `outcomes.py` (what a dense objective sums over), `cost.py` (how
many rows a tile takes, and the peak-memory formula), `statistics.py` (entropies, divergences and log-probs of each
row), `loss.py` (objectives and their gradient, on retained rows only). Pure mathematics on tensors: the module that
owns the weights is in `opd/student.py`.
"""
