"""What motion scores are taken on: formulas of joint positions, without weights, and the text-motion evaluator."""
