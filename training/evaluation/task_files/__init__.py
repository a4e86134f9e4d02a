"""Local tasks of lm-evaluation-harness on the embedded stories; `--tasks` of `training.eval_model` runs them."""
