"""What a model is worth (tasks, runner, statistics), and what the code costs (benchmarks). Imports opd, never the reverse."""
