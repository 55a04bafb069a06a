"""The report: evaluations and runs of any number of models on one page, beside the published figures."""
