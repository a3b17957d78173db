"""What a model is worth: tasks, runner, statistics. Imports opd, never the reverse."""
