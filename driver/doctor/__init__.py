"""`stretto doctor TARGET`: what a model is to a plan, and a plan to start from."""
