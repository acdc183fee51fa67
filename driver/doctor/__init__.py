"""`stretto doctor`: propose a plan for a model, and report which parameters it leaves replicated and why."""
