"""Evaluation on benchmarks: backends, results, scores and reports."""
