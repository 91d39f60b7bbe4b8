"""Result files read, counted and scored, as `pipelines/score.py` does it."""

from post_platform.metrics.results import count_results, read_results
from post_platform.metrics.score import flat, score


def table_and_scores(dataset, truth, predictions, sequences=None):
    """The contingency table of result files, and their scores as one mapping."""
    results = read_results(dataset, truth, predictions, sequences)
    table = count_results(results)
    further = results.further()
    return table, flat(score(table, results.contract, further=further))


def scores(dataset, truth, predictions, sequences=None):
    """The scores alone."""
    return table_and_scores(dataset, truth, predictions, sequences)[1]
