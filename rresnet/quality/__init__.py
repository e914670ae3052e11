"""What makes a row worth trusting: what the machine did meanwhile, whether it had settled, what is doubtful."""
