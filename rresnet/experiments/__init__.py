"""From settings to an answer: what each experiment plans, measures and shows."""
