"""What a person sees: progress while it runs (`progress.py`), and at the end a table (`table.py`), a plot (`plot.py`),
a model card (`card.py`)
and stored rollouts with what each token weighed (`rollouts.py`)."""
