"""Training on Ray: the loop of one worker, checkpoints, evaluation of whole sequences, and the launch of a run."""
