"""What a person sees: how both models end a turn (`stops.py`), progress while it runs (`progress.py`), stored rollouts
with what each token weighed (`rollouts.py`), the same and metrics in experiment trackers (`trackers.py`), and at the
end a table (`table.py`), a plot (`plot.py`) and a model card (`card.py`); `markdown.py` writes every Markdown table.
"""
