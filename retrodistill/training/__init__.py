"""Training: texts, lists, losses around the objectives, the trainer, stages and their monitors."""
